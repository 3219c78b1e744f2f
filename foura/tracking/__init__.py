"""Tracking: each run's status.json, its journal for the MLflow store, the store itself, the parent run of a sweep."""
