"""Signals in the process of a run, and in the processes that it forks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from foura.errors import Interrupted
from foura.run import signals

CHILD = """
import multiprocessing, os, signal, sys, time
from foura.run import signals

def sleep(ready):
    ready.set()
    time.sleep(60)

WHEN
fork = multiprocessing.get_context("fork")
ready = fork.Event()
child = fork.Process(target=sleep, args=[ready])
child.start()
assert ready.wait(20)
os.kill(child.pid, getattr(signal, sys.argv[1]))
child.join(2 if sys.argv[1] == "SIGINT" else 20)
print("exit code", child.exitcode)
child.kill()
"""
WHEN = {
    "a run": "signals.handle_sigterm()",
    "training": "signals.Signals().catch()",
    # as Lightning's SignalConnector does in validation and test
    "a Trainer's loop": "signals.handle_sigterm(); "
    "ours = signal.getsignal(signal.SIGTERM); signal.signal(signal.SIGTERM, lambda *a: ours(*a))",
}


def child_after(when: str, name: str, run_env: dict[str, str]) -> tuple[str, str]:
    """(standard output, standard error) of a process that forks a child and sends it the signal."""
    command = [sys.executable, "-c", CHILD.replace("WHEN", WHEN[when]), name]
    ended = subprocess.run(command, env=run_env, capture_output=True, text=True, check=True, timeout=60)
    return ended.stdout, ended.stderr


@pytest.mark.parametrize("when", WHEN)
def test_sigterm_ends_a_forked_child_and_it_prints_nothing(when, run_env) -> None:
    assert child_after(when, "SIGTERM", run_env) == (f"exit code {-signal.SIGTERM}\n", "")


def test_ctrl_c_in_training_is_left_to_the_parent(run_env) -> None:
    assert child_after("training", "SIGINT", run_env) == ("exit code None\n", "")


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers of this process as they were, afterwards."""
    before = {signum: signal.getsignal(signum) for signum in signals.CAUGHT}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_a_signal_waits_for_the_point_where_the_run_can_stop(handlers) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    deferred = signals.Signals()
    deferred.catch()
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 20
    while deferred.asked is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3; the same command resumes") as stopped:
        deferred.stop("step 3")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_schedulers_handler_runs_before_the_run_ends(handlers) -> None:
    called = []
    signal.signal(signal.SIGUSR1, lambda signum, frame: called.append(signum))
    deferred = signals.Signals()
    deferred.catch()
    signal.raise_signal(signal.SIGUSR1)
    assert called == []
    with pytest.raises(Interrupted, match="SIGUSR1"):
        deferred.stop("step 3")
    assert called == [signal.SIGUSR1]


def test_a_second_ctrl_c_does_not_wait(handlers, capsys) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    deferred = signals.Signals()
    deferred.catch()
    signal.raise_signal(signal.SIGINT)
    assert "once more stops at once" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_background_job_of_a_shell_keeps_ignoring_ctrl_c(handlers) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.Signals().catch()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
