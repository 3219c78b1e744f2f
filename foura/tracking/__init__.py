"""Tracking: each run's status.json, its journal for the MLflow store, the store itself, the parent run of a sweep.

MLflow is imported in this room alone, so that these settings are made before: MLflow reads them when it is imported. What
the environment says already stays.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell a server of its makers about every run
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # else a dead server is retried for minutes at every call
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each small file helps nobody
