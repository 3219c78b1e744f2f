"""Sweeps that are killed, repeated and shared: nothing is lost, nothing is run twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

SMALL = ("dataset.limit=60", "trainer.max_epochs=6", "rank=4")


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


@pytest.mark.parametrize(
    "choice",
    [
        ("adapter=foura", "adapter.dropout=0.1"),
        pytest.param(("adapter=adalora",), marks=pytest.mark.slow),
        pytest.param(("adapter=sora",), marks=pytest.mark.slow),
        pytest.param(("adapter=full",), marks=pytest.mark.slow),
    ],
    ids=lambda choice: choice[0],
)
def test_killed_and_repeated_is_as_never_killed(choice, train, root, run_env, tmp_path) -> None:
    whole = train("-m", "sweep=s", *SMALL, *choice, into="whole")
    outputs = tmp_path / "killed"
    process = start(root, run_env, outputs, "sweep=s", *SMALL, *choice)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(outputs.glob("sweeps/s/*/checkpoint.pt")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (before,) = statuses(outputs, "s").values()
    assert before["state"] == "running"
    repeated = train("-m", "sweep=s", *SMALL, *choice, into="killed")
    assert repeated.code == 0
    (after,), (expected,) = statuses(outputs, "s").values(), statuses(whole.outputs, "s").values()
    assert after["run_id"] == before["run_id"]
    assert scientific(after["metrics"]) == pytest.approx(scientific(expected["metrics"]), rel=1e-5)
    store = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    history = store.get_metric_history(after["run_id"], "val/loss")
    assert [point.step for point in history] == list(range(6))
    assert store.get_run(after["run_id"]).info.status == "FINISHED"
    assert not list(outputs.glob("sweeps/s/*/checkpoint.pt"))
