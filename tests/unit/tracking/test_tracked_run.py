"""Runs in a store: created once, reopened, hidden where another replaces them, made again where a store was lost."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from foura.errors import UserError
from foura.tracking.store import open_store, parent_run
from foura.tracking.sync import sync
from foura.tracking.tracked_run import TrackedRun, start_run


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """A folder with one store for all tests: MLflow takes seconds to create one."""
    return tmp_path_factory.mktemp("outputs")


def started(outputs: Path, name: str, sweep: str | None = None, **options: Any) -> TrackedRun:
    folder = outputs / "runs" / name
    folder.mkdir(parents=True)
    tags = {"key": "k", "sweep": sweep or ""}
    return start_run(outputs, folder, name, {"rank": 4}, tags, sweep, **options)


def client(outputs: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")


@pytest.mark.parametrize(
    ("state", "status"),
    [("finished", "FINISHED"), ("interrupted", "KILLED"), ("failed", "FAILED"), ("diverged", "FAILED")],
)
def test_a_run_is_closed_as_it_ended(state, status, outputs) -> None:
    run = started(outputs, state)
    run.log_metrics({"val/loss": 1.0}, step=0)
    (run.folder / "a.txt").write_text("x")
    run.log_artifact(run.folder / "a.txt", "texts")
    assert run.close(state) and run.logged_steps("val/loss") == {0}
    found = client(outputs).get_run(run.run_id)
    assert found.info.status == status and found.data.tags["state"] == state and found.data.params == {"rank": "4"}
    assert [item.path for item in client(outputs).list_artifacts(run.run_id, "texts")] == ["texts/a.txt"]
    again = TrackedRun(outputs, run.folder)
    assert again.stage() == "there"
    again.reopen()
    assert client(outputs).get_run(run.run_id).info.status == "RUNNING"


def test_the_stage_of_a_run(outputs, tmp_path, monkeypatch) -> None:
    assert TrackedRun(outputs, tmp_path).stage() == "none"
    run = started(outputs, "staged")
    assert run.stage() == "there"
    client(outputs).delete_run(run.run_id)
    assert run.stage() == "hidden"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert TrackedRun(outputs, run.folder).stage() == ""


def test_a_run_of_a_sweep_replaces_those_of_before(outputs) -> None:
    parent = parent_run(outputs, "s", command="python train.py -m", tune=["adapter.lr"])
    first = started(outputs, "first", sweep="s")
    lost = started(outputs, "lost", sweep="s")  # of the same key, and in no status.json
    second = started(outputs, "other", sweep="s", replaces=first.run_id)
    store_ = client(outputs)
    stages = [store_.get_run(run.run_id).info.lifecycle_stage for run in (first, lost, second)]
    assert stages == ["deleted", "deleted", "active"]
    assert store_.get_run(second.run_id).data.tags["mlflow.parentRunId"] == parent == parent_run(outputs, "s")
    assert store_.get_run(parent).data.tags["tune"] == "adapter.lr"


def test_a_run_that_was_created_but_not_written_down_is_found(outputs) -> None:
    run = started(outputs, "created")
    lines = (run.folder / "tracking.jsonl").read_text().splitlines()
    (run.folder / "tracking.jsonl").write_text(
        lines[0] + "\n"
    )  # killed before the line that says how many are delivered
    again = TrackedRun(outputs, run.folder)
    assert again.outbox.deliver() and again.run_id == run.run_id


def test_sync_makes_a_lost_store_again_and_leaves_deleted_runs_deleted(outputs, tmp_path) -> None:
    parent_run(outputs, "lost", command="python train.py -m", tune=["adapter.lr"])
    kept, hidden = started(outputs, "kept", sweep="lost"), started(outputs, "hidden")
    (kept.folder / "gone.txt").write_text("x")
    kept.log_artifact(kept.folder / "gone.txt")
    kept.close("finished")
    client(outputs).delete_run(hidden.run_id)
    hidden.outbox._write({"end": "finished"})
    assert sync(outputs) == []
    (kept.folder / "gone.txt").unlink()
    moved = shutil.copytree(outputs, tmp_path / "moved")
    (moved / "mlflow.db").unlink()
    assert TrackedRun(moved, moved / "runs" / "created").stage() == "lost"
    assert {("hidden", "made again"), ("kept", "made again")} <= set(sync(moved))
    again = TrackedRun(moved, moved / "runs" / "kept")
    assert again.run_id != kept.run_id and again.stage() == "there"
    found = client(moved).get_run(again.run_id)
    assert found.data.tags["mlflow.parentRunId"] == parent_run(moved, "lost") and found.info.status == "FINISHED"
    assert client(moved).get_run(parent_run(moved, "lost")).data.tags["tune"] == "adapter.lr"


def test_a_store_that_was_deleted_is_not_written_to(outputs, tmp_path) -> None:
    copied = shutil.copytree(outputs, tmp_path / "copied")
    open_store(copied)
    (copied / "mlflow.db").unlink()
    with pytest.raises(UserError, match="was deleted or replaced while it was in use"):
        open_store(copied)


def test_a_store_that_does_not_answer_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for call in (lambda: open_store(tmp_path), lambda: sync(tmp_path), lambda: started(tmp_path, "a")):
        with pytest.raises(UserError, match=r"the tracking store at http://127\.0\.0\.1:9 does not answer"):
            call()
