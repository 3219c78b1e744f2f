"""`foura status` without a name, and `foura drop`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from foura.errors import UserError
from foura.sweep.listing import age, best, drop, overview, runs_in
from foura.tracking.store import open_store
from foura.tracking.sync import sync
from tests.helpers.runs import children
from tests.helpers.sweeps import grid, synthetic


def put(folder: Path, state: str, **more: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"key": "k", "run_id": None, "state": state, **more}))


def finished(folder: Path, curve: str, value: float) -> None:
    put(folder, "finished", metrics={f"best/{curve}": value, "test/acc": 0.1}, curve=curve)


def test_status_lists_sweeps_and_runs_with_validation_values_and_age(tmp_path) -> None:
    finished(tmp_path / "sweeps" / "s" / "rank=4", "acc", 0.5)
    finished(tmp_path / "sweeps" / "s" / "rank=8", "acc", 0.75)
    put(tmp_path / "sweeps" / "s" / "rank=16", "failed", error="too large")
    finished(tmp_path / "runs" / "one", "loss", 0.25)
    finished(tmp_path / "runs" / "two", "loss", 0.125)
    stamp = (tmp_path / "runs" / "one" / "status.json").stat().st_mtime - 3 * 3600 - 10
    os.utime(tmp_path / "runs" / "one" / "status.json", (stamp, stamp))
    lines = overview(tmp_path, only_best=False)
    assert lines[0] == "sweep s: 1 failed, 2 finished, just now"
    assert "best: finished" in lines[1] and "val acc 0.750" in lines[1] and lines[1].endswith("rank=8")
    assert lines[2].split() == ["finished", "val", "loss", "0.250", "3", "h", "ago", "one"]
    assert lines[3].split()[-3:] == ["just", "now", "two"]
    assert [line.split()[-1] for line in overview(tmp_path, only_best=True)[2:]] == ["two"]  # the smaller loss
    assert best(runs_in(tmp_path / "sweeps" / "s")).name == "rank=8"


def test_an_old_run_is_listed_by_its_loss_and_an_empty_folder_says_so(tmp_path) -> None:
    put(tmp_path / "runs" / "old", "finished", metrics={"best/loss": 2.0})
    assert "val loss 2.000" in overview(tmp_path, only_best=False)[0]
    assert overview(tmp_path / "none", only_best=False) == ["no runs yet"]


def test_ages() -> None:
    assert [age(s) for s in (0, 59, 61, 7199, 86399, 200_000)] == [
        "just now", "just now", "1 min ago", "1 h ago", "23 h ago", "2 d ago",
    ]  # fmt: skip


def recorded(outputs: Path) -> None:
    """A sweep of four runs, in the store and in folders."""
    synthetic(outputs, "s", grid(0.0, seeds=range(1)))
    for folder in (outputs / "sweeps" / "s").iterdir():
        if folder.is_dir():
            lines = [json.loads(line) for line in (folder / "tracking.jsonl").read_text().splitlines()]
            (run_id,) = {line["run_id"] for line in lines if "run_id" in line}
            (folder / "status.json").write_text(json.dumps({"key": folder.name, "run_id": run_id, "state": "finished"}))


def test_a_dropped_run_is_in_the_trash_and_not_in_mlflow(tmp_path) -> None:
    recorded(tmp_path)
    first = runs_in(tmp_path / "sweeps" / "s")[0]
    run_id = json.loads((first.folder / "status.json").read_text())["run_id"]
    place = drop(tmp_path, f"s/{first.name}")
    assert place == tmp_path / "trash" / "runs" / first.name and (place / "tracking.jsonl").is_file()
    assert len(runs_in(tmp_path / "sweeps" / "s")) == 3
    assert run_id not in {run.info.run_id for run in children(tmp_path, "s")[1]}
    assert open_store(tmp_path)[0].get_run(run_id).info.lifecycle_stage == "deleted"
    assert overview(tmp_path, only_best=False)[-1].startswith(f"trash: {first.name} (0 MB")
    assert sync(tmp_path) == []  # what is in the trash stays there
    again = tmp_path / "sweeps" / "s" / first.name
    put(again, "finished")
    assert drop(tmp_path, str(again)).name == f"{first.name}-2"


def test_a_dropped_sweep_goes_with_its_parent(tmp_path) -> None:
    recorded(tmp_path)
    assert drop(tmp_path, "s") == tmp_path / "trash" / "sweeps" / "s"
    assert children(tmp_path, "s") == ([], [])
    assert not (tmp_path / "sweeps" / "s").exists()


@pytest.mark.parametrize("name", ["absent", "..", "s/../..", "/", "s/../../../x", "", "."])
def test_only_runs_and_sweeps_of_the_folder_are_dropped(name, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    finished(outputs / "sweeps" / "s" / "rank=4", "acc", 0.5)
    put(tmp_path / "x", "finished")
    with pytest.raises(UserError, match="there is no run or sweep"):
        drop(outputs, name)
    assert runs_in(outputs / "sweeps" / "s") and (tmp_path / "x").exists()


def test_a_run_in_progress_is_not_dropped(tmp_path) -> None:
    folder = tmp_path / "runs" / "busy"
    put(folder, "running")
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="busy is running"):
        drop(tmp_path, "busy")
    assert folder.exists()
