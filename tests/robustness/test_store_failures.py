"""A tracking store that fails during a run: the run ends as it would have, and every number arrives."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from foura.cli import main
from foura.tracking import journal
from tests.helpers.survives import record

QUICK = ("adapter=lora", "rank=4", "dataset.limit=40", "dataset.epochs=5")


def arrived(outputs, run_id: str) -> tuple[list[int], dict, set[str]]:
    store = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    steps = [point.step for point in store.get_metric_history(run_id, "val/loss")]
    return steps, store.get_run(run_id).data.metrics, {item.path for item in store.list_artifacts(run_id)}


@pytest.fixture
def failing(monkeypatch):
    """failing(first, last): of all writes to the store, those of these numbers are refused, as by a locked database."""
    monkeypatch.setattr(journal, "RETRY", 0.0)
    monkeypatch.setattr(journal, "PATIENCE", 0.5)

    def choose(first: int, last: float) -> None:
        calls = 0

        def wrap(method):
            def call(self, *arguments, **named):
                nonlocal calls
                calls += 1
                if first <= calls <= last and not named.get("params"):
                    raise MlflowException("(sqlite3.OperationalError) database is locked")
                return method(self, *arguments, **named)

            return call

        for name in ("log_batch", "log_artifact", "set_tag", "set_terminated"):
            monkeypatch.setattr(MlflowClient, name, wrap(getattr(MlflowClient, name)))

    return choose


def test_what_a_store_refuses_for_a_while_arrives_in_order(train, failing, monkeypatch, capsys) -> None:
    failing(3, 6)
    ended = train(*QUICK)
    assert ended.code == 0 and "behind" not in ended.out
    (path,) = ended.outputs.glob("runs/*/status.json")
    status = json.loads(path.read_text())
    steps, metrics, artifacts = arrived(ended.outputs, status["run_id"])
    assert steps == list(range(5)) and "adapter" in artifacts
    assert metrics["test/acc"] == pytest.approx(status["metrics"]["test/acc"])
    monkeypatch.setattr("sys.argv", ["foura", "sync", str(ended.outputs)])
    main()
    assert "nothing to send" in capsys.readouterr().out


def test_a_store_that_stays_away_is_told_later(train, failing, monkeypatch, capsys) -> None:
    failing(4, float("inf"))
    with monkeypatch.context() as away:
        ended = train(*QUICK)
        assert ended.code == 0
        assert "tracking is behind ((sqlite3.OperationalError) database is locked): `foura sync`" in ended.out
        (path,) = ended.outputs.glob("runs/*/status.json")
        status = json.loads(path.read_text())
        assert status["state"] == "finished"
        away.undo()
    steps, metrics, _ = arrived(ended.outputs, status["run_id"])
    assert len(steps) < 5 and "test/acc" not in metrics
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", ["foura", "sync", str(ended.outputs)])
    main()
    assert "delivered: " in capsys.readouterr().out
    steps, metrics, artifacts = arrived(ended.outputs, status["run_id"])
    assert steps == list(range(5)) and "adapter" in artifacts
    assert metrics["test/acc"] == pytest.approx(status["metrics"]["test/acc"])
    main()
    assert "nothing to send" in capsys.readouterr().out


def test_a_store_that_is_not_there_at_the_start_is_said_at_once(train, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code = train(*QUICK).code
    assert "the tracking store at http://127.0.0.1:9 does not answer" in code and "\n" not in code


@pytest.fixture
def in_mid_run(monkeypatch):
    """in_mid_run(deed): does the deed once, when a run in this process has kept its second epoch."""

    def plan(deed: Callable[[], object]) -> None:
        replace, kept = os.replace, 0

        def replace_and_count(source, target, **more) -> None:
            nonlocal kept
            replace(source, target, **more)
            kept += Path(target).name == "checkpoint.pt"
            if Path(target).name == "checkpoint.pt" and kept == 2:
                deed()

        monkeypatch.setattr(os, "replace", replace_and_count)

    return plan


LONGER = ("adapter=lora", "rank=4", "dataset.limit=60", "dataset.epochs=20")
LOCKED = 8.0  # seconds


@pytest.mark.slow
def test_a_locked_store_is_told_when_it_is_free(train, in_mid_run, tmp_path) -> None:
    outputs, threads = tmp_path / "outputs", []

    def lock() -> None:
        other = sqlite3.connect(outputs / "mlflow.db", timeout=30, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        threads.append(threading.Timer(LOCKED, other.close))
        threads[0].start()

    in_mid_run(lock)
    ended = train(*LONGER)
    threads[0].join()
    assert ended.code == 0 and "behind" not in ended.out
    (path,) = outputs.glob("runs/*/status.json")
    steps, metrics, artifacts = arrived(outputs, json.loads(path.read_text())["run_id"])
    assert steps == list(range(20)) and "test/acc" in metrics and "adapter" in artifacts
    record("tracking", f"SQLite locked by another process for {LOCKED:g} s", "1 run of 20 epochs")


@pytest.mark.slow
def test_a_store_that_was_deleted_is_made_again_from_the_runs_folders(train, in_mid_run, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    in_mid_run((outputs / "mlflow.db").unlink)
    ended = train(*LONGER)
    assert ended.code == 0
    assert "was deleted or replaced while it was in use): `foura sync` delivers" in " ".join(ended.out.split())
    sync = [sys.executable, "-m", "foura", "sync", str(outputs)]
    assert "made again" in subprocess.run(sync, env=run_env, capture_output=True, text=True, check=True).stdout
    (path,) = outputs.glob("runs/*/status.json")
    status = json.loads(path.read_text())
    (tmp_path / "copy").mkdir()
    shutil.copy(outputs / "mlflow.db", tmp_path / "copy")  # this process still has the deleted file open under its name
    steps, metrics, artifacts = arrived(tmp_path / "copy", status["run_id"])
    assert status["state"] == "finished" and steps == list(range(20)) and "adapter" in artifacts
    assert metrics["test/acc"] == pytest.approx(status["metrics"]["test/acc"])
    record("tracking", "SQLite deleted in mid-run, made again by foura sync", "1 run of 20 epochs")
