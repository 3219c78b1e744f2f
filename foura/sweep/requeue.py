"""A run in a job of Slurm's that has to make room: the job goes back into the queue instead of ending."""

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class RequeueCallback(Callback):
    """Hydra callback of jobs that hydra/launcher=submitit_slurm started.

    Before Slurm preempts a job it asks it to end (SIGTERM), for as long as the partition's GraceTime. Lightning does end
    the training, and a job that ended by itself is over for Slurm: nobody starts it again. So it is requeued first. What
    Slurm is ending already (scancel, a requeue) is left to it.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        first = os.environ.get("SLURM_PROCID", "0") == "0" and threading.current_thread() is threading.main_thread()
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and first:
            signal.signal(signal.SIGTERM, requeue)


def requeue(signum: int, frame: FrameType | None) -> None:
    """Handler of SIGTERM: put this process's job back into the queue, if it is still running there."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    asked = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    # Slurm's signal goes to every process of the job: what is started here inherits that it is ignored
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        state = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
        if state == "RUNNING":
            subprocess.run(["scontrol", "requeue", job], timeout=60, check=False)
    finally:
        signal.signal(signal.SIGTERM, handler)
