"""Preempted Slurm jobs: the job is requeued, so that the run resumes when Slurm starts it again."""

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from foura.sweep.callback import ends_the_program


class RequeueCallback(Callback):
    """Hydra callback of jobs that hydra/launcher=submitit_slurm started.

    Before Slurm preempts a job it sends SIGTERM and waits for the partition's GraceTime. The run stops on SIGTERM, and Slurm
    does not restart a job that ended by itself; so the job is requeued first. A job that Slurm is ending already (scancel, a
    requeue) is left alone.
    """

    @ends_the_program
    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        first = os.environ.get("SLURM_PROCID", "0") == "0" and threading.current_thread() is threading.main_thread()
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and first:
            signal.signal(signal.SIGTERM, requeue)


def requeue(signum: int, frame: FrameType | None) -> None:
    """SIGTERM handler: requeue the Slurm job of this process if Slurm still counts it as running."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    asked = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    # Slurm sends the signal to every process of the job: the two commands below inherit that it is ignored
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        state = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
        if state == "RUNNING":
            subprocess.run(["scontrol", "requeue", job], timeout=60, check=False)
    finally:
        signal.signal(signal.SIGTERM, handler)
