"""Run folders and the tracking store as the tests read them, and sweeps in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from foura.tracking.address import sqlite_uri


def client(outputs: Path) -> MlflowClient:
    return MlflowClient(sqlite_uri(outputs / "mlflow.db"))


def status(ended: Any) -> dict[str, Any]:
    """status.json of the only run of an ended command."""
    return json.loads((ended.folder() / "status.json").read_text())


def statuses(outputs: Path, sweep: str | None = None) -> dict[str, dict[str, Any]]:
    """{run folder's name: status.json} of a sweep, or of the single runs."""
    place = outputs / "runs" if sweep is None else outputs / "sweeps" / sweep
    return {path.parent.name: json.loads(path.read_text()) for path in place.glob("*/status.json")}


def children(outputs: Path, sweep: str) -> tuple[list[Run], list[Run]]:
    """The sweep's (parent runs, runs) in the store."""
    store = client(outputs)
    experiment = store.get_experiment_by_name("foura").experiment_id
    runs = store.search_runs([experiment], filter_string=f"tags.sweep = '{sweep}'", max_results=1000)
    parents = [run for run in runs if run.data.tags["role"] == "sweep"]
    return parents, [run for run in runs if run.data.tags["role"] == "run"]


def scientific(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that do not depend on the machine."""
    return {key: value for key, value in metrics.items() if not key.startswith("cost/")}


def start(root: Path, env: Mapping[str, str], outputs: Path, *arguments: str) -> subprocess.Popen[str]:
    """A sweep's command, in a process group of its own; its standard error is in its standard output."""
    command = [sys.executable, str(root / "train.py"), "-m", *arguments, f"outputs={outputs}"]
    options: dict[str, Any] = {"env": dict(env), "cwd": outputs.parent, "text": True, "start_new_session": True}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
