"""Processes that are killed, stopped or out of memory in the worst moment: the same command goes on, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.runs import children, scientific, start, statuses
from tests.helpers.survives import record

# kill -9 of itself while the file or folder of that name is being written: what is there of it is half of it
KILLED_WHILE = """
import os, pathlib, runpy, signal, sys
name, left = sys.argv[1], int(sys.argv[2])
del sys.argv[:3]
real = os.replace
def replace(source, target, **more):
    global left
    if pathlib.Path(target).name == name:
        left -= 1
        if left == 0:
            files = [source] if os.path.isfile(source) else [one for one in pathlib.Path(source).iterdir()]
            for one in files:
                os.truncate(one, os.path.getsize(one) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    return real(source, target, **more)
os.replace = replace
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SMALL = ("adapter=foura", "rank=4", "dataset.limit=60", "dataset.epochs=4", "sweep=s")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("checkpoint.pt", 3),
        pytest.param("adapter", 1, marks=pytest.mark.slow),
        pytest.param("status.json", 3, marks=pytest.mark.slow),
    ],
)
def test_killed_while_it_writes(name, number, train, root, run_env, tmp_path) -> None:
    outputs = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_WHILE, name, str(number), str(root / "train.py"), "-m", *SMALL]
    ran = subprocess.run([*command, f"outputs={outputs}"], env=run_env, cwd=tmp_path, capture_output=True, check=False)
    assert ran.returncode == -signal.SIGKILL
    (before,) = statuses(outputs, "s").values()
    assert before["state"] == "running"
    again, whole = train("-m", *SMALL, into="killed"), train("-m", *SMALL, into="whole")
    assert again.code == 0 and "resumes after epoch" in again.out
    (after,), (expected,) = statuses(outputs, "s").values(), statuses(whole.outputs, "s").values()
    assert after["state"] == "finished" and after["run_id"] == before["run_id"]
    assert scientific(after["metrics"]) == pytest.approx(scientific(expected["metrics"]), rel=1e-5)
    assert len(children(outputs, "s")[1]) == 1
    (adapter,) = outputs.glob("sweeps/s/*/adapter/adapter_model.safetensors")
    (intact,) = whole.outputs.glob("sweeps/s/*/adapter/adapter_model.safetensors")
    assert adapter.stat().st_size == intact.stat().st_size
    record("faults", f"kill -9 while {name} is written", "1 run, its numbers those of one never killed")


LONG = ("adapter=foura", "adapter.dropout=0.1", "rank=4", "dataset.limit=600", "dataset.batch_size=2", "sweep=s")
LONG += ("dataset.epochs=2",)


def begun(root, run_env, outputs: Path, *arguments: str) -> subprocess.Popen:
    """A sweep's command, a second after its first epoch: in the middle of its second."""
    command = [sys.executable, str(root / "train.py"), "-m", *arguments, f"outputs={outputs}"]
    process = subprocess.Popen(
        command,
        env=run_env,
        cwd=outputs.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run where it is ignored
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(outputs.glob("sweeps/s/*/checkpoint.pt")):
        time.sleep(0.05)
    time.sleep(1)
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_within_an_epoch_goes_on_from_that_step(signum, train, root, run_env, tmp_path) -> None:
    outputs = tmp_path / "stopped"
    process = begun(root, run_env, outputs, *LONG)
    process.send_signal(signum)
    said, _ = process.communicate(timeout=120)
    (before,) = statuses(outputs, "s").values()
    assert before["state"] == "interrupted" and process.returncode == 128 + signum, said
    assert "in epoch 2; the same command resumes from there" in said
    again, whole = train("-m", *LONG, into="stopped"), train("-m", *LONG, into="whole")
    assert again.code == 0 and "resumes after batch " in again.out
    (after,), (expected,) = statuses(outputs, "s").values(), statuses(whole.outputs, "s").values()
    assert after["run_id"] == before["run_id"]
    assert scientific(after["metrics"]) == pytest.approx(scientific(expected["metrics"]), rel=1e-5)
    record(
        "faults", f"{signal.Signals(signum).name} within an epoch", "1 run, goes on from that step, the same numbers"
    )


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(root, run_env, tmp_path) -> None:
    outputs = tmp_path / "stopped"
    process = begun(root, run_env, outputs, *LONG)
    os.killpg(process.pid, signal.SIGSTOP)  # so that both come within one step
    process.send_signal(signal.SIGINT)
    os.killpg(process.pid, signal.SIGCONT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    (status,) = statuses(outputs, "s").values()
    assert process.returncode != 0 and status["state"] == "interrupted"
    record("faults", "Ctrl-C twice", "1 run, ends at once, interrupted")


@pytest.mark.slow
def test_a_worker_that_is_killed_does_not_end_the_sweep(root, run_env, tmp_path) -> None:
    """As the system kills the largest process when memory runs out; joblib then gives up its whole pool."""
    outputs = tmp_path / "outputs"
    grid = ("adapter=lora", "rank=4", "seed=range(4)", "dataset.limit=200", "dataset.epochs=12", "sweep=s")
    process = start(root, run_env, outputs, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *grid)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not list(outputs.glob("sweeps/s/*/checkpoint.pt")):
        time.sleep(0.05)
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


def test_a_run_that_is_out_of_memory_does_not_end_the_sweep(root, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    choice = (
        "sweep=s",
        "backbone.name=embedded,vit_giant_patch14_224",
        "backbone.pretrained=false",
        "seed=0",
        "rank=4",
    )
    command = [sys.executable, "-c", LITTLE_MEMORY, str(root / "train.py"), "-m", *choice, "dataset.limit=40"]
    command += ["dataset.epochs=1", "adapter=lora", f"outputs={outputs}"]
    ran = subprocess.run(command, env=run_env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "1 failed, 1 finished" in ran.stdout, ran.stdout + ran.stderr
    assert "out of memory (" in ran.stdout and "Lower dataset.batch_size" in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr
    record("faults", "out of memory in one run of a sweep", "2 runs, the other goes on")
