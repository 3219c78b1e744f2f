"""Sweeps on a real Slurm, of one node: jobs that are preempted, requeued, out of time or cancelled lose nothing."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.helpers.runs import children, scientific, start, statuses
from tests.helpers.slurm_cluster import Slurm, missing
from tests.helpers.survives import record
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

EPOCHS = 25
LONG = ("sweep=s", "adapter=lora", "rank=4", "dataset.limit=60", f"dataset.epochs={EPOCHS}")
LAUNCHER = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30", "hydra.launcher.max_num_timeout=3")
INTERRUPTIONS = {
    "requeued": ("scontrol", "requeue", "{job}"),
    "preempted": ("srun", "--partition=urgent", "--ntasks=2", "sleep", "1"),
    # what Slurm sends hydra.launcher.signal_delay_s before hydra.launcher.timeout_min is over
    "out of time": ("scancel", "--signal=USR2", "{job}"),
    "asked to end": ("scancel", "--signal=TERM", "{job}"),
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    if reason := missing():
        pytest.skip(reason)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def env(slurm, run_env) -> dict[str, str]:
    return {**run_env, **{key: slurm.env[key] for key in ("PATH", "SLURM_CONF")}}


def only(outputs: Path) -> dict:
    """The status of the only run."""
    (status,) = statuses(outputs, "s").values()
    return status


def newest_job(outputs: Path) -> str:
    """The id of the job that was submitted last, for a sweep of one run."""
    return max((path.name for path in outputs.glob("sweeps/s/.submitit/*") if path.is_dir()), key=int)


def epochs_kept(outputs: Path) -> float:
    """When the run last wrote a checkpoint, 0 before its first."""
    return max((path.stat().st_mtime for path in outputs.glob("sweeps/s/*/checkpoint.pt")), default=0.0)


def trains_again(outputs: Path, since: float) -> bool:
    return epochs_kept(outputs) > since and only(outputs)["state"] == "running"


def running_on(outputs: Path, process: subprocess.Popen, since: float) -> None:
    """Waits until the run trains again and has kept an epoch since."""
    wait_until(lambda: process.poll() is not None or trains_again(outputs, since), "the run to train again")
    assert process.poll() is None, process.communicate()[0]


def test_slurm_runs_a_sweep_and_it_ends_in_a_report(slurm, env, root, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    grid = ("sweep=s", "adapter=head,lora", "rank=4", "seed=0,1", "dataset.limit=40", "dataset.epochs=2")
    process = start(root, env, outputs, *LAUNCHER, *grid)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert "sweep s: 4 finished" in said and "report: " in said
    assert [status["state"] for status in statuses(outputs, "s").values()] == ["finished"] * 4
    parents, runs = children(outputs, "s")
    assert len(parents) == 1 and len(runs) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parents[0].info.run_id}


def test_a_run_interrupted_in_every_way_ends_as_if_nothing_had_happened(slurm, env, root, tmp_path) -> None:
    """A job that is cancelled, the same command again, and four interruptions that Slurm takes back into the queue."""
    outputs, whole = tmp_path / "outputs", tmp_path / "whole"
    process = start(root, env, outputs, *LAUNCHER, *LONG)
    running_on(outputs, process, since=0.0)
    job = newest_job(outputs)
    slurm.ask("scancel", job)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 1
    assert f"error: job {job} ended before its run did (state: CANCELLED" in said
    cancelled = only(outputs)
    assert cancelled["state"] == "interrupted" and not slurm.jobs()

    process = start(root, env, outputs, *LAUNCHER, *LONG)
    for how, command in INTERRUPTIONS.items():
        running_on(outputs, process, since=epochs_kept(outputs))
        job = newest_job(outputs)
        subprocess.Popen([word.format(job=job) for word in command], env=env, stderr=subprocess.DEVNULL)
        wait_until(lambda job=job: slurm.jobs().get(job) == "PENDING", f"the job in the queue again after: {how}")
        assert only(outputs)["state"] == "interrupted", how
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "report: " in said, said

    without_slurm = start(root, env, whole, *LONG)
    said, _ = without_slurm.communicate(timeout=400)
    assert without_slurm.returncode == 0, said
    ended, expected = only(outputs), only(whole)
    assert ended["state"] == "finished" and ended["run_id"] == cancelled["run_id"]
    assert scientific(ended["metrics"]) == pytest.approx(scientific(expected["metrics"]), rel=1e-5)
    parents, runs = children(outputs, "s")
    assert len(parents) == 1 and [run.info.status for run in runs] == ["FINISHED"]
    history = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}").get_metric_history(ended["run_id"], "val/loss")
    assert [point.step for point in history] == list(range(EPOCHS))
    record("schedulers", "Slurm of one node: cancelled, requeued, preempted, USR2, TERM", "1 run, 5 interruptions")


def test_the_script_without_submitit_goes_back_into_the_queue_and_goes_on(slurm, env, root, tmp_path) -> None:
    outputs, log = tmp_path / "outputs", tmp_path / "log"
    text = (root / "docs" / "clusters" / "slurm.sh").read_text()
    text = text.replace(". .venv/bin/activate", "").replace("OMP_NUM_THREADS=2", "OMP_NUM_THREADS=1")
    command = f"python {root / 'train.py'} -m {' '.join(LONG)} outputs={outputs} &"
    (tmp_path / "slurm.sh").write_text(re.sub(r"^python train\.py .* &$", command, text, flags=re.MULTILINE))
    options = ("--array=0", "--cpus-per-task=1", "--mem=0", f"--output={log}", "--parsable", f"--chdir={tmp_path}")
    sent = subprocess.run(
        ["sbatch", *options, "slurm.sh"], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    job, kept = f"{sent.stdout.strip()}_0", 0.0
    # by Slurm itself (so does it preempt a job without steps, once GraceTime is over); by --signal=B:TERM@60
    for interruption in (("scontrol", "requeue", job), ("scancel", "--batch", "--signal=TERM", job)):
        wait_until(lambda since=kept: trains_again(outputs, since), "the run to train")
        slurm.ask(*interruption)
        wait_until(lambda: slurm.jobs().get(job) == "PENDING", "the job in the queue again")
        assert only(outputs)["state"] == "interrupted"
        kept = epochs_kept(outputs)
    wait_until(lambda: job not in slurm.jobs(), "the job's end", seconds=600)
    said = log.read_text()
    assert only(outputs)["state"] == "finished", said
    assert said.count("resumes after ") == 2 and "report: " in said
    record("schedulers", "Slurm of one node: an sbatch array requeued, and out of time", "1 run, 2 interruptions")
