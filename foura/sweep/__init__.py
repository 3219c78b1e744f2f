"""Sweeps: many runs under one name."""
