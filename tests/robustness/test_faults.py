"""Bad days: files cut short, two processes at one run. Each is really done, and nothing is lost or counted twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.runs import children, start, statuses
from tests.helpers.survives import record

SMALL = ("adapter=lora", "rank=4", "dataset.limit=60", "sweep=s")


def killed_after_an_epoch(root, run_env, outputs: Path, *more: str) -> Path:
    """The folder of a run that was killed with kill -9 when it had a checkpoint."""
    process = start(root, run_env, outputs, *SMALL, *more)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(outputs.glob("sweeps/s/*/checkpoint.pt")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (checkpoint,) = outputs.glob("sweeps/s/*/checkpoint.pt")
    return checkpoint.parent


@pytest.mark.parametrize("file", ["checkpoint.pt", "status.json"])
def test_a_file_that_was_cut_short_costs_the_epochs_and_nothing_else(file, train, root, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    folder = killed_after_an_epoch(root, run_env, outputs, "dataset.epochs=8")
    path = folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    ended = train("-m", *SMALL, "dataset.epochs=8")
    assert ended.code == 0
    (status,) = statuses(outputs, "s").values()
    assert status["state"] == "finished"
    parents, runs = children(outputs, "s")
    assert len(parents) == len(runs) == 1 and runs[0].info.run_id == status["run_id"]
    record("faults", f"{file} cut short", "1 run")


@pytest.mark.slow
def test_two_processes_at_one_run(root, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    first = start(root, run_env, outputs, *SMALL, "dataset.epochs=60")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(outputs.glob("sweeps/s/*/checkpoint.pt")):
        time.sleep(0.05)
    second = start(root, run_env, outputs, *SMALL, "dataset.epochs=60")
    said, _ = second.communicate(timeout=120)
    assert "left to the other: another process is at this run already" in said
    assert first.communicate(timeout=300) and first.returncode == 0
    (status,) = statuses(outputs, "s").values()
    assert status["state"] == "finished" and len(children(outputs, "s")[1]) == 1
    record("faults", "two processes at one run", "1 run, one of them leaves it to the other")


@pytest.mark.slow
def test_a_single_run_that_was_interrupted_goes_on(root, run_env, tmp_path) -> None:
    command = [
        sys.executable,
        str(root / "train.py"),
        "adapter=lora",
        "rank=4",
        "dataset.limit=60",
        "dataset.epochs=30",
    ]
    options = {"env": run_env, "cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **options)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("outputs/runs/*/checkpoint.pt")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (path,) = tmp_path.glob("outputs/runs/*/status.json")
    before = json.loads(path.read_text())
    again = subprocess.run(command, check=False, **options)
    assert again.returncode == 0, again.stdout
    assert "resumes after epoch" in again.stdout
    after = json.loads(path.read_text())
    assert after["state"] == "finished" and after["run_id"] == before["run_id"]
    record("faults", "kill -9 in training", "1 run")


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(megabytes): a folder on a disk of that size."""
    mounted = []

    def make(megabytes: int) -> Path:
        where = tmp_path / "disk"
        where.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(where)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("no right to mount a small disk here")
        mounted.append(where)
        return where

    yield make
    for where in mounted:
        subprocess.run(["umount", "-l", str(where)], check=False)


@pytest.mark.parametrize("megabytes", [2, 4])
def test_a_full_disk_is_said_and_the_same_command_goes_on(megabytes, train, small_disk, monkeypatch) -> None:
    """2 MB are too few for the first checkpoint; 4 MB fill up while the run goes on or ends."""
    disk = small_disk(megabytes)
    (disk / "outputs").mkdir()
    command = ("adapter=lora", "rank=16", "dataset.limit=60", "dataset.epochs=4")
    full = train(*command, into="disk/outputs")
    assert isinstance(full.code, str) and full.code.startswith("error: ") and "\n" not in full.code, full.out
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    again = train(*command, into="disk/outputs")
    assert again.code == 0, again.out
    (path,) = (disk / "outputs").glob("runs/*/status.json")
    assert json.loads(path.read_text())["state"] == "finished"
    record("faults", f"disk full after {megabytes} MB", "1 run, goes on when there is room")


def test_read_only_outputs_are_said(train, small_disk) -> None:
    disk = small_disk(50)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code = train("adapter=lora", into="disk/outputs").code
    assert "Read-only file system" in code and "\n" not in code
    record("faults", "read-only outputs", "said in a sentence")


def clock_library() -> Path:
    """libfaketime, which gives a process another clock; Debian's package is installed where it is missing and may be."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "libfaketime"], check=True, stdout=subprocess.DEVNULL)
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("no libfaketime here, and no right to install it: apt install libfaketime")
    return found[0]


@pytest.mark.slow
def test_a_clock_that_jumps_does_no_harm(root, run_env, tmp_path) -> None:
    """Three days back after the first run of a sweep, a year on in the second; killed, and repeated a year before."""
    outputs, clock = tmp_path / "outputs", tmp_path / "clock"
    clock.write_text("+0\n")
    environment = {**run_env, "LD_PRELOAD": str(clock_library()), "FAKETIME_TIMESTAMP_FILE": str(clock)}
    environment |= {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    grid = ("sweep=s", "adapter=lora", "rank=4", "seed=range(3)", "dataset.limit=200", "dataset.epochs=10")

    def until(count: int, state: str) -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if [one["state"] for one in statuses(outputs, "s").values()].count(state) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(f"not {count} {state}")

    process = start(root, environment, outputs, *grid)
    until(1, "finished")
    clock.write_text("-3d\n")
    until(2, "finished")
    clock.write_text("+365d\n")
    while not list(outputs.glob("sweeps/s/*/checkpoint.pt")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    clock.write_text("-365d\n")
    again = start(root, environment, outputs, *grid)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "3 runs, 2 done, 1 to run" in said and "sweep s: 3 finished" in said, said
    parents, runs = children(outputs, "s")
    assert len(parents) == 1 and len(runs) == 3
    record("faults", "the clock jumps 3 days back, a year on, two years back", "3 runs")
