"""A run's life: status.json, the MLflow store, the parent run of a sweep."""
