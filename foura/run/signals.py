"""Signals that stop a run: Ctrl-C, SIGTERM, and those that a scheduler's own handler waits for."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from foura import distributed
from foura.errors import Interrupted

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def handle_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does, so that open files are closed and status.json says how it ended."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, exit_on_signal)


def exit_on_signal(signum: int, frame: FrameType | None) -> None:
    """Signal handler: exit with the status that a shell gives for the signal."""
    sys.exit(128 + signum)


class Signals:
    """Defers signals to a point of the training where it can stop without losing work. A second Ctrl-C stops it at once.

    Attributes:
        asked: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.before: dict[int, Any] = {}
        # a scheduler's handlers: once training runs, Lightning has set its own
        self.others = {signum: signal.getsignal(signum) for signum in CAUGHT}

    def catch(self) -> None:
        """Install the handlers; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in CAUGHT:
            handler = signal.getsignal(signum)
            if signum == signal.SIGINT and handler == signal.SIG_IGN:
                continue  # started in the background of a shell, where Ctrl-C is for others
            if signum in (signal.SIGINT, signal.SIGTERM) or callable(handler):
                self.before[signum] = signal.signal(signum, self._defer)

    def release(self) -> None:
        """Put the earlier handlers back."""
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.before = {}

    def _defer(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT:
            if self.asked == signum:
                raise KeyboardInterrupt
            if distributed.is_main():
                print(
                    "\nCtrl-C: stopping at the next step, so that the run can resume; once more stops at once",
                    flush=True,
                )
        self.asked = signum

    def stop(self, where: str) -> None:
        """End the run now.

        A scheduler's handler runs first: ours and submitit's requeue a Slurm job.

        Raises:
            Interrupted: always.
        """
        signum = self.asked or signal.SIGTERM  # another process got it, if this one did not
        handler = self.others.get(signal.Signals(signum))
        self.release()
        if signum != signal.SIGINT and callable(handler) and handler is not exit_on_signal:
            handler(signum, None)
        name = signal.Signals(signum).name
        raise Interrupted(f"stopped by {name} after {where}; the same command resumes from there.", signum)


def _leave_to_parent() -> None:
    """Undo the run's handlers in a forked child, such as a DataLoader's worker: it has no run to save.

    SIGTERM ends it as any process, whoever set the handler: within a Trainer's loop ours is wrapped by Lightning's. Ctrl-C
    reaches parent and children alike, and while it is deferred it is left to the parent, which finishes its step with its
    workers. (A child that is started by exec has no handlers of its parent's anyway.)
    """
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), Signals):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=_leave_to_parent)
