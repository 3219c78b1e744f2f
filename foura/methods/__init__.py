"""Adapter methods."""
