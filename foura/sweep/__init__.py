"""Sweeps: many runs under one name, planned, watched and reported by callbacks of Hydra."""
