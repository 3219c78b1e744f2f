"""status.json through a run's life, and the lock of its folder."""

import json
import os
import stat

import pytest

from foura.errors import Busy, Diverged, Ended, Interrupted, UserError
from foura.tracking.status import RunStatus, held, read_json, state_of, write_json


def test_a_run_that_ends_well_is_finished_and_needs_no_checkpoint(tmp_path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"x")
    with RunStatus(tmp_path) as status:
        status.write("running", key="k", run_id="r")
        assert read_json(tmp_path / "status.json")["state"] == "running" and held(tmp_path)
        status.fields["metrics"] = {"test/loss": 1.0}
    found = read_json(tmp_path / "status.json")
    assert found["state"] == "finished" and found["metrics"] == {"test/loss": 1.0} and found["seconds"] >= 0
    assert not (tmp_path / "checkpoint.pt").exists() and not held(tmp_path)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (UserError("no"), "failed"),
        (ValueError("a bug"), "failed"),
        (Diverged("nan"), "diverged"),
        (Interrupted("stopped", 15), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
        (OSError(28, "No space left on device"), "interrupted"),
        (Ended("killed", "interrupted"), "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_a_run_that_ends_badly_says_how_and_keeps_its_checkpoint(error, state, tmp_path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"x")
    assert state_of(error) == state
    status = RunStatus(tmp_path)

    def run() -> None:
        with status:
            status.write("running", key="k")
            raise error

    with pytest.raises(type(error)):
        run()
    found = read_json(tmp_path / "status.json")
    assert found["state"] == state and found["key"] == "k" and str(error) in found["error"]
    assert (tmp_path / "checkpoint.pt").exists() and not held(tmp_path)


def test_a_run_that_does_not_start_leaves_the_result_of_before(tmp_path) -> None:
    write_json(
        tmp_path / "status.json", {"state": "finished", "key": "k", "run_id": "r", "metrics": {"test/loss": 1.0}}
    )
    with RunStatus(tmp_path):
        pass  # its result is there
    assert read_json(tmp_path / "status.json")["state"] == "finished"
    with pytest.raises(UserError), RunStatus(tmp_path):
        raise UserError("the config is wrong")
    found = read_json(tmp_path / "status.json")
    assert found["state"] == "failed" and found["error"] == "the config is wrong"
    assert (found["key"], found["run_id"], found["metrics"]) == ("k", "r", {"test/loss": 1.0})


def test_two_processes_cannot_hold_one_folder(tmp_path) -> None:
    with RunStatus(tmp_path), pytest.raises(Busy, match="another process is at this run already"), RunStatus(tmp_path):
        pass
    with RunStatus(tmp_path):
        pass  # it is free again


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "[" * 100_000, "\ud800", '{"killed": "x", "state": "running"}'])
def test_a_damaged_file_is_no_result(text, tmp_path) -> None:
    (tmp_path / "status.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with RunStatus(tmp_path) as status:
        assert status.previous.get("key") is None
        status.write("running", key="k")
    assert read_json(tmp_path / "status.json")["state"] == "finished"


def test_others_may_read_what_the_umask_lets_them(tmp_path) -> None:
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "status.json", {"a": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "status.json").stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path) -> None:
    write_json(tmp_path / "status.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "status.json", {"a": object()})
    assert json.loads((tmp_path / "status.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
