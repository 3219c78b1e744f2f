"""Run folders and the tracking store as the tests read them, and commands in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient


def client(outputs: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")


def status(ended) -> dict:
    return json.loads((ended.folder() / "status.json").read_text())


def children(outputs: Path, sweep: str):
    store = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("foura").experiment_id
    runs = store.search_runs([experiment], filter_string=f"tags.sweep = '{sweep}'", max_results=1000)
    parents = [run for run in runs if run.data.tags["role"] == "sweep"]
    return parents, [run for run in runs if run.data.tags["role"] == "run"]


def statuses(outputs: Path, sweep: str) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in outputs.glob(f"sweeps/{sweep}/*/status.json")}


def start(root, run_env, where: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(root / "train.py"), "-m", *arguments, f"outputs={where}"]
    return subprocess.Popen(
        command,
        env=run_env,
        cwd=where.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def scientific(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if not key.startswith("cost/")}
