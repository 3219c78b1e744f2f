"""Bad days: files cut short, two processes at one run, a full disk, a clock that jumps. Nothing is lost or counted twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import children, start, statuses
from tests.helpers.stops import stopped
from tests.helpers.survives import record
from tests.helpers.waiting import wait_until

SMALL = ("adapter=lora", "rank=4", "dataset.limit=60")


@pytest.mark.parametrize("file", ["checkpoint.pt", pytest.param("status.json", marks=pytest.mark.slow)])
def test_a_file_that_was_cut_short_costs_the_epochs_and_nothing_else(file, train, root, run_env, tmp_path) -> None:
    outputs, command = tmp_path / "outputs", ("-m", "sweep=s", *SMALL, "dataset.epochs=3")
    assert stopped(root, run_env, outputs, *command, at="wrote checkpoint.pt").returncode == -signal.SIGKILL
    (path,) = outputs.glob(f"sweeps/s/*/{file}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert train(*command).code == 0
    (status,) = statuses(outputs, "s").values()
    assert status["state"] == "finished"
    parents, runs = children(outputs, "s")
    assert len(parents) == len(runs) == 1 and runs[0].info.run_id == status["run_id"]
    record("faults", f"{file} cut short", "1 run")


@pytest.mark.slow
def test_two_processes_at_one_run(root, run_env, tmp_path) -> None:
    """The first is held in the middle of its run while the second comes."""
    outputs, command = tmp_path / "outputs", ("sweep=s", *SMALL, "dataset.epochs=60")
    first = start(root, run_env, outputs, *command)
    wait_until(lambda: list(outputs.glob("sweeps/s/*/checkpoint.pt")), "the first checkpoint")
    os.killpg(first.pid, signal.SIGSTOP)
    said, _ = start(root, run_env, outputs, *command).communicate(timeout=300)
    os.killpg(first.pid, signal.SIGCONT)
    assert "left to the other: another process is at this run already" in said
    assert first.communicate(timeout=300) and first.returncode == 0
    (status,) = statuses(outputs, "s").values()
    assert status["state"] == "finished" and len(children(outputs, "s")[1]) == 1
    record("faults", "two processes at one run", "1 run, one of them leaves it to the other")


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


@pytest.mark.parametrize("megabytes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_full_disk_is_said_and_the_same_command_resumes(megabytes, train, small_disk, monkeypatch) -> None:
    """2 MB are too few for the first checkpoint; 4 MB fill up later in the run."""
    disk = small_disk(megabytes)
    (disk / "outputs").mkdir()
    command = ("adapter=lora", "rank=16", "dataset.limit=60", "dataset.epochs=4")
    full = train(*command, into="disk/outputs", fresh=True)
    assert isinstance(full.code, str) and full.code.startswith("error: ") and "\n" not in full.code, full.out
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    again = train(*command, into="disk/outputs")
    assert again.code == 0, again.out
    (path,) = (disk / "outputs").glob("runs/*/status.json")
    assert json.loads(path.read_text())["state"] == "finished"
    record("faults", f"disk full after {megabytes} MB", "1 run, resumes when there is room")


def test_read_only_outputs_are_said(train, small_disk) -> None:
    disk = small_disk(50)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code = train("adapter=lora", into="disk/outputs", fresh=True).code
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
        def seen() -> int:
            return [one["state"] for one in statuses(outputs, "s").values()].count(state)

        wait_until(lambda: seen() >= count, f"{count} {state}")

    process = start(root, environment, outputs, *grid)
    until(1, "finished")
    clock.write_text("-3d\n")
    until(2, "finished")
    clock.write_text("+365d\n")
    wait_until(lambda: list(outputs.glob("sweeps/s/*/checkpoint.pt")), "a checkpoint", every=0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    clock.write_text("-365d\n")
    again = start(root, environment, outputs, *grid)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "3 runs, 2 done, 1 to run" in said and "sweep s: 3 finished" in said, said
    parents, runs = children(outputs, "s")
    assert len(parents) == 1 and len(runs) == 3
    record("faults", "the clock jumps 3 days back, a year on, two years back", "3 runs")


@pytest.mark.slow
def test_a_working_directory_that_is_deleted_in_the_middle_of_a_sweep(root, run_env, tmp_path) -> None:
    """Hydra asks for it before each run: the run that was going on ends, and the sweep ends in a sentence."""
    work, outputs = tmp_path / "work", tmp_path / "outputs"
    work.mkdir()
    command = [
        sys.executable,
        str(root / "train.py"),
        "-m",
        "sweep=s",
        *SMALL,
        "seed=0,1",
        "dataset.epochs=9",
        f"outputs={outputs}",
    ]
    process = subprocess.Popen(command, cwd=work, env=dict(run_env), stdout=-1, stderr=-2, text=True)
    wait_until(lambda: list(outputs.glob("sweeps/s/*/checkpoint.pt")), "the first run's checkpoint")
    work.rmdir()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in said
    assert said.rstrip().endswith("error: the working directory was deleted; change to one that exists (cd ~).")
    assert [status["state"] for status in statuses(outputs, "s").values()] == ["finished"]
    record("faults", "the working directory deleted in the middle of a sweep", "2 runs, the one at work ends")
