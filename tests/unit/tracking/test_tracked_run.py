"""Runs in a store: created once, reopened, hidden where another replaces them, made again where a store was lost."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient

from foura.errors import UserError
from foura.tracking.store import open_store, parent_run
from foura.tracking.sync import sync
from foura.tracking.tracked_run import TrackedRun, legal_key, start_run


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


def test_a_sweep_keeps_the_commands_of_its_parts_once_each_the_last_one_last(outputs) -> None:
    for command in ("train -m a", "train -m b", "train -m a", "", "x" * 5000):
        parent = parent_run(outputs, "parts", command=command)
        tags = client(outputs).get_run(parent).data.tags
        if command == "":
            assert tags["command"] == "train -m b\ntrain -m a"
            assert tags["mlflow.note.content"] == "`train -m b`\n\n`train -m a`"
    assert tags["command"] == "x" * 5000  # as much as a tag holds


def test_a_run_that_was_created_but_not_written_down_is_found(outputs) -> None:
    run = started(outputs, "created")
    lines = (run.folder / "tracking.jsonl").read_text().splitlines()
    (run.folder / "tracking.jsonl").write_text(
        lines[0] + "\n"
    )  # killed before the line that says how many are delivered
    again = TrackedRun(outputs, run.folder)
    assert again.outbox.deliver() and again.run_id == run.run_id


@pytest.mark.parametrize("at", ["create_run", "log_batch"])
def test_params_arrive_though_the_line_drops_between_run_and_params(at, outputs, monkeypatch) -> None:
    real, calls = getattr(MlflowClient, at), []

    def drops(self, *arguments, **named):
        made = real(self, *arguments, **named) if at == "create_run" else None
        if not calls:
            calls.append(1)
            raise ConnectionError("the line dropped")
        return made if made is not None else real(self, *arguments, **named)

    with monkeypatch.context() as line:
        line.setattr(MlflowClient, at, drops)
        run = started(outputs, f"dropped {at}")
    assert run.error == "the line dropped" and len(run.outbox.items) > run.outbox.delivered
    assert TrackedRun(outputs, run.folder).outbox.deliver()  # as `foura sync` does in another process
    run_id = TrackedRun(outputs, run.folder).run_id
    assert run_id and client(outputs).get_run(run_id).data.params == {"rank": "4"}
    uid = run.outbox.items[0]["create"]["tags"]["uid"]
    found = client(outputs).search_runs(["0", "1", "2"], filter_string=f"tags.uid = '{uid}'")
    assert [one.info.run_id for one in found] == [run_id]  # made once


def test_params_of_a_journal_of_0_1_0_arrive(outputs) -> None:
    run = started(outputs, "old journal")
    first, *_ = run.outbox.items
    (run.folder / "tracking.jsonl").write_text(
        json.dumps(
            {"create": {**first["create"], "params": {"rank": "8"}, "tags": {**first["create"]["tags"], "uid": "u"}}}
        )
    )
    again = TrackedRun(outputs, run.folder)
    assert again.outbox.deliver() and client(outputs).get_run(again.run_id).data.params == {"rank": "8"}


def test_params_of_any_key_and_length_arrive(outputs, monkeypatch) -> None:
    keys = [
        "adapter.options.rank_pattern..*qkv",
        "a*b",
        "a?b",
        "/x",
        "x/../y",
        "..",
        ".",
        "x" * 300,
        "é",
        "a b:c/d",
        "",
    ]
    params = {
        **{key: n for n, key in enumerate(keys)},
        "long": "v" * 7000,
        "other": "v" * 6999,
        **{f"k{n}": n for n in range(150)},
    }
    folder = outputs / "runs" / "odd"
    folder.mkdir(parents=True)
    run = start_run(outputs, folder, "odd", params, {"key": "k", "sweep": ""}, None)
    assert run.error == ""
    found = client(outputs).get_run(run.run_id).data.params
    assert len(found) == len(params)  # a*b and a?b are two keys still
    assert found["é"] == "8" and found["a b:c/d"] == "9" and found[legal_key("a*b")] == "1"
    assert legal_key("a*b").startswith("a_b-") and legal_key("adapter.lr") == "adapter.lr"
    assert found["long"].startswith("v" * 5900) and len(found["long"]) <= 6000 and found["long"] != found["other"]


def test_a_server_of_an_earlier_version_gets_shorter_values(outputs, monkeypatch) -> None:
    real = MlflowClient.log_batch

    def old(self, run_id, metrics=(), params=(), tags=()):
        if any(len(param.value) > 500 for param in params):
            raise MlflowException(
                "Param value had length 900, which exceeded length limit of 500", INVALID_PARAMETER_VALUE
            )
        return real(self, run_id, metrics=metrics, params=params)

    monkeypatch.setattr(MlflowClient, "log_batch", old)
    folder = outputs / "runs" / "short"
    folder.mkdir(parents=True)
    run = start_run(outputs, folder, "short", {"a": "v" * 900, "b": 1}, {"key": "k", "sweep": ""}, None)
    found = client(outputs).get_run(run.run_id).data.params
    assert run.error == "" and found["b"] == "1" and 400 < len(found["a"]) <= 500


def test_a_deleted_experiment_is_said_with_the_command_that_restores_it(empty_store, tmp_path) -> None:
    shutil.copy(empty_store, tmp_path)
    _, experiment = open_store(tmp_path)
    client(tmp_path).delete_experiment(experiment)
    for call in (lambda: open_store(tmp_path), lambda: sync(tmp_path), lambda: parent_run(tmp_path, "s", "x")):
        with pytest.raises(UserError, match="the experiment foura was deleted") as refused:
            call()
    said = str(refused.value).rpartition("restored: ")[2]
    env = dict(os.environ)
    for word in shlex.split(said):
        if word.startswith("MLFLOW_TRACKING_URI="):
            env["MLFLOW_TRACKING_URI"] = word.partition("=")[2]
    command = [sys.executable, "-m", *shlex.split(said)[1:]]
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0
    assert open_store(tmp_path)[1] == experiment


def test_sync_makes_a_lost_store_again_and_leaves_deleted_runs_deleted(outputs, tmp_path) -> None:
    parent_run(outputs, "lost", command="python train.py -m", tune=["adapter.lr"])
    kept, hidden = started(outputs, "kept", sweep="lost"), started(outputs, "hidden")
    (kept.folder / "gone.txt").write_text("x")
    kept.log_artifact(kept.folder / "gone.txt")
    kept.close("finished")
    started(outputs, "asked").close("finished")
    client(outputs).delete_run(hidden.run_id)
    hidden.outbox._write({"end": "finished"})
    assert sync(outputs) == []
    (kept.folder / "gone.txt").unlink()
    moved = shutil.copytree(outputs, tmp_path / "moved")
    (moved / "mlflow.db").unlink()
    assert TrackedRun(moved, moved / "runs" / "asked").stage() == "lost"
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
