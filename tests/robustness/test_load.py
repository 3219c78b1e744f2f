"""Many workers, many runs, many steps."""

import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from foura.tracking.store import open_store
from tests.helpers.runs import children, start, statuses
from tests.helpers.survives import record

pytestmark = pytest.mark.slow
WORKERS = 8
FINISHED = 1000
READ = 100  # instructions of SQLite for each finished run, at most; to read its points and parameters takes over 1,000
STEPS = 10_000
GROWTH = 20.0  # MB, at most


def test_eight_workers_write_to_one_sqlite_store(root, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    grid = ("sweep=s", "adapter=head,lora", "seed=range(8)", "rank=4", "dataset.limit=40", "dataset.epochs=8")
    process = start(root, run_env, outputs, "hydra/launcher=joblib", f"hydra.launcher.n_jobs={WORKERS}", *grid)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0 and "behind" not in said, said
    after = statuses(outputs, "s")
    assert [one["state"] for one in after.values()] == ["finished"] * 16
    parents, runs = children(outputs, "s")
    assert len(parents) == 1 and {run.info.run_id for run in runs} == {one["run_id"] for one in after.values()}
    store = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    for run in runs:
        steps = [point.step for point in store.get_metric_history(run.info.run_id, "val/loss")]
        assert run.info.status == "FINISHED" and steps == list(range(8))
    record("load", f"{WORKERS} workers write to one SQLite store", f"{len(runs)} runs")


# counts what SQLite does, in hundreds of instructions of its virtual machine: the same on every machine
COUNTED = """
import runpy, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
hundreds = 0

def count():
    global hundreds
    hundreds += 1

@event.listens_for(Engine, "connect")
def watch(connection, _):
    connection.set_progress_handler(count, 100)

del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
print("instructions:", 100 * hundreds)
"""


def test_a_thousand_finished_runs_do_not_slow_a_run(root, run_env, tmp_path) -> None:
    """A run's queries do not read through the other runs in the store, which have 200 points and 60 parameters each."""
    full, empty = tmp_path / "full", tmp_path / "empty"
    store, experiment = open_store(full)
    for number in range(FINISHED):
        tags = [RunTag("sweep", f"s{number % 10}"), RunTag("role", "run"), RunTag("key", f"{number:016x}")]
        run_id = store.create_run(experiment, run_name=f"run {number}").info.run_id
        points = [Metric(f"val/m{m}", 0.5, 0, step) for m in range(20) for step in range(10)]
        store.log_batch(run_id, metrics=points, params=[Param(f"p{p}", "x") for p in range(60)], tags=tags)
        store.set_terminated(run_id)

    def instructions(outputs: Path) -> int:
        choice = ("adapter=head", "dataset.limit=40", "dataset.epochs=1", f"outputs={outputs}", "sweep=s1")
        command = [sys.executable, "-c", COUNTED, str(root / "train.py"), *choice]
        ended = subprocess.run(command, env=run_env, cwd=tmp_path, capture_output=True, text=True, check=True)
        return int(ended.stdout.rpartition("instructions:")[2])

    open_store(empty)
    a_run = (instructions(full) - instructions(empty)) / FINISHED
    assert a_run < READ, a_run
    what = f"a run with {FINISHED:,} finished ones in the store"
    record("load", what, f"{max(0.0, a_run):.0f} instructions of SQLite more for each finished one")


def test_memory_is_flat_over_ten_thousand_steps(root, run_env, tmp_path) -> None:
    choice = ("adapter=foura", "rank=4", "dataset.limit=50", "dataset.batch_size=5", f"dataset.repeats={STEPS // 100}")
    command = [sys.executable, str(root / "train.py"), *choice, "dataset.epochs=10", f"outputs={tmp_path}/outputs"]
    process = subprocess.Popen(command, env=run_env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    samples: list[tuple[int, float]] = []

    def watch() -> None:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.2)
            try:
                samples.append((len(epochs), seen.memory_info().rss / 1e6))
            except psutil.NoSuchProcess:
                return

    epochs: list[str] = []
    threading.Thread(target=watch, daemon=True).start()
    assert process.stdout is not None
    for line in process.stdout:
        if ": epoch " in line:
            epochs.append(line)
    assert process.wait() == 0 and len(epochs) == 10
    # after the first 2,000 steps and evaluations everything has been allocated once
    early, late = (statistics.median(mb for epoch, mb in samples if epoch == at) for at in (2, 9))
    assert late - early < GROWTH, (early, late)
    record("load", f"memory over {STEPS:,} steps", f"{late - early:+.0f} MB from step 2,000 to 10,000")
