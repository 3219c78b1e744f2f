"""Requeueing a Slurm job that is asked to end; on a real Slurm in tests/cli/test_slurm.py."""

import os
import signal

import pytest

from foura.sweep.requeue import RequeueCallback, requeue


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """asked(state): what scontrol is asked for, while squeue says that the job is in this state."""

    def ask(state: str) -> str:
        for name, line in (("squeue", f"echo {state}"), ("scontrol", f'echo "$@" > {tmp_path / "told"}')):
            (tmp_path / name).write_text(f"#!/bin/sh\nkill -TERM $$  # Slurm asks every process of the job\n{line}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        requeue(signal.SIGTERM, None)
        return (tmp_path / "told").read_text().strip() if (tmp_path / "told").exists() else ""

    return ask


def test_a_running_job_goes_back_into_the_queue_and_one_that_is_being_ended_does_not(asked, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert asked("COMPLETING") == ""
    assert asked("RUNNING") == "requeue 8"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert asked("RUNNING") == "requeue 7_1"


def test_only_the_first_process_of_a_job_of_submitits_listens(monkeypatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        for executor, rank, listens in (
            ("", "0", False),
            ("local", "0", False),
            ("slurm", "1", False),
            ("slurm", "0", True),
        ):
            monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
            monkeypatch.setenv("SLURM_PROCID", rank)
            RequeueCallback().on_job_start(None)
            assert (signal.getsignal(signal.SIGTERM) is requeue) == listens
    finally:
        signal.signal(signal.SIGTERM, before)
