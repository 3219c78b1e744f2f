"""Processes that are killed, stopped or out of memory in the worst moment: the same command resumes, nothing is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import children, client, scientific, start, statuses
from tests.helpers.stops import stopped
from tests.helpers.survives import record
from tests.helpers.waiting import wait_until

SMALL = ("rank=4", "dataset.limit=60", "dataset.epochs=4")
RANDOM = ("adapter=foura", "adapter.dropout=0.1")  # an adapter that draws from the generator in every step


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("at", "number", "choice"),
    [
        ("writing checkpoint.pt", 3, RANDOM),
        slow("writing adapter", 1, RANDOM),
        slow("writing status.json", 3, RANDOM),
        slow("wrote checkpoint.pt", 2, ("adapter=adalora",)),
        slow("wrote checkpoint.pt", 2, ("adapter=sora",)),
        slow("wrote checkpoint.pt", 2, ("adapter=full",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_killed_and_repeated_is_as_never_killed(at, number, choice, train, root, run_env, tmp_path) -> None:
    command = ("-m", "sweep=s", *SMALL, *choice)
    outputs = tmp_path / "killed"
    assert stopped(root, run_env, outputs, *command, at=at, number=number).returncode == -signal.SIGKILL
    (before,) = statuses(outputs, "s").values()
    assert before["state"] == "running"
    again, whole = train(*command, into="killed"), train(*command, into="whole")
    assert again.code == 0 and "resumes after epoch" in again.out
    (after,), (expected,) = statuses(outputs, "s").values(), statuses(whole.outputs, "s").values()
    assert after["state"] == "finished" and after["run_id"] == before["run_id"]
    assert scientific(after["metrics"]) == pytest.approx(scientific(expected["metrics"]), rel=1e-5)
    (parent,), (run,) = children(outputs, "s")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id and run.info.status == "FINISHED"
    history = client(outputs).get_metric_history(after["run_id"], "val/loss")
    assert [point.step for point in history] == list(range(4))
    (adapter,), (intact,) = (list(one.glob("sweeps/s/*/adapter/*.safetensors")) for one in (outputs, whole.outputs))
    assert adapter.stat().st_size == intact.stat().st_size
    assert not list(outputs.glob("sweeps/s/*/checkpoint.pt"))
    record("faults", f"kill -9, {at} ({choice[0]})", "1 run, its numbers those of one never killed")


@pytest.mark.parametrize(
    ("signum", "sweep"), [slow(signal.SIGINT, ()), slow(signal.SIGTERM, ("-m", "sweep=s")), slow(signal.SIGTERM, ())]
)
def test_stopped_within_an_epoch_resumes_from_that_step(signum, sweep, train, root, run_env, tmp_path) -> None:
    """60 items in batches of 2: an epoch has 30 steps, and the signal comes in the middle of the second."""
    command = (*sweep, *RANDOM, *SMALL, "dataset.batch_size=2")
    outputs = tmp_path / "stopped"
    ended = stopped(root, run_env, outputs, *command, at="step", number=45, by=signum)
    before = status_of_the_only_run(outputs)
    assert before["state"] == "interrupted" and ended.returncode == 128 + signum, ended.stdout
    assert "step 45, in epoch 2; the same command resumes from there" in ended.stdout
    assert list(outputs.glob("*/**/adapter/adapter_model.safetensors"))  # what was earned is kept
    assert client(outputs).get_run(before["run_id"]).info.status == "KILLED"
    again, whole = train(*command, into="stopped"), train(*command, into="whole")
    assert again.code == 0 and "resumes after batch 15 of epoch 2" in " ".join(again.out.split())
    after, expected = status_of_the_only_run(outputs), status_of_the_only_run(whole.outputs)
    assert after["run_id"] == before["run_id"]
    assert scientific(after["metrics"]) == pytest.approx(scientific(expected["metrics"]), rel=1e-5)
    what = f"{signal.Signals(signum).name} within an epoch of a {'sweep' if sweep else 'run'}"
    record("faults", what, "1 run, resumes from that step, the same numbers")


def status_of_the_only_run(outputs: Path) -> dict:
    (status,) = [*statuses(outputs).values(), *statuses(outputs, "s").values()]
    return status


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(root, run_env, tmp_path) -> None:
    """Both come within the first of an epoch's two steps; the first alone would have a checkpoint written after it."""
    outputs = tmp_path / "stopped"
    ended = stopped(root, run_env, outputs, *RANDOM, *SMALL, at="step", by=signal.SIGINT, times=2)
    status = status_of_the_only_run(outputs)
    assert ended.returncode != 0 and status["state"] == "interrupted"
    assert not list(outputs.glob("runs/*/checkpoint.pt"))
    record("faults", "Ctrl-C twice", "1 run, ends at once, interrupted")


@pytest.mark.slow
def test_a_worker_that_is_killed_does_not_end_the_sweep(root, run_env, tmp_path) -> None:
    """As the system kills the largest process when memory runs out; joblib then gives up its whole pool."""
    outputs = tmp_path / "outputs"
    grid = ("adapter=lora", "rank=4", "seed=range(4)", "dataset.limit=200", "dataset.epochs=12", "sweep=s")
    process = start(root, run_env, outputs, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *grid)
    wait_until(lambda: list(outputs.glob("sweeps/s/*/checkpoint.pt")), "the first checkpoint")
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "loky"], capture_output=True, text=True, check=True)
    workers = [
        int(pid) for pid in found.stdout.split() if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(workers[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "a worker of the sweep was killed, as when memory runs out; the sweep continues" in said
    assert [one["state"] for one in statuses(outputs, "s").values()] == ["finished"] * 4
    assert len(children(outputs, "s")[1]) == 4
    record("faults", "kill -9 of a worker of a sweep", "4 runs")


# no more than so much beyond what is there once all is imported, as on a machine with little memory
LITTLE_MEMORY = """
import resource, runpy, sys
import foura.run.run, foura.families.family, foura.families.images.backbone, foura.families.images.task
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 10**9,) * 2)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_that_is_out_of_memory_does_not_end_the_sweep(root, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    names = "backbone.name=embedded,vit_giant_patch14_224"
    choice = ("sweep=s", names, "backbone.pretrained=false", "seed=0", "rank=4")
    command = [sys.executable, "-c", LITTLE_MEMORY, str(root / "train.py"), "-m", *choice, "dataset.limit=40"]
    command += ["dataset.epochs=1", "adapter=lora", f"outputs={outputs}"]
    ran = subprocess.run(command, env=run_env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "1 failed, 1 finished" in ran.stdout, ran.stdout + ran.stderr
    assert "out of memory (" in ran.stdout and "Lower dataset.batch_size" in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr
    record("faults", "out of memory in one run of a sweep", "2 runs, the other finishes")
