"""Starts the processes of one run on this machine, and waits for them.

Nothing listens beyond this machine: the processes meet through a file in a folder that only the user can read, and talk over
the loopback interface. (torchrun would open a store on all interfaces, and whoever writes to it can run code in the launcher.)
"""

import contextlib
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foura.children import command
from foura.distributed import MEETING

AROUND = 0.1  # seconds between looks at the processes
OVERDUE = 1
GRACE = 60.0  # seconds that the others get to end by themselves, after one has ended or a signal came


class Group:
    """The processes of one run.

    Attributes:
        ended: {rank: exit status} of those that ended, the first to end first; negative for a signal; `OVERDUE` for one that
            had to be killed here.
        signum: the signal that this process received and passed on; 0 for none.
    """

    def __init__(self, folder: Path, meeting: Path, count: int, sweep: str | None) -> None:
        self.ended: dict[int, int] = {}
        self.signum, self.until = 0, math.inf
        arguments = command("foura.run.worker", str(folder), sweep or "")
        self.processes = [
            # stdin: it closes when this process ends, however it does, and then the worker ends too
            subprocess.Popen(
                arguments, env=_environment(meeting, rank, count), stdin=subprocess.PIPE, start_new_session=True
            )
            for rank in range(count)
        ]

    def wait(self) -> None:
        """Wait for all processes. The first that fails, or a signal to this process, ends the others."""
        while len(self.ended) < len(self.processes):
            for rank, process in enumerate(self.processes):
                if rank not in self.ended and process.poll() is not None:
                    self.ended[rank] = OVERDUE if time.monotonic() > self.until else process.returncode
            if any(self.ended.values()) and self.until == math.inf:
                self._end(signal.SIGTERM)
            if time.monotonic() > self.until:
                self.kill()
            time.sleep(AROUND)

    def stop(self, signum: int, frame: Any = None) -> None:
        """Signal handler: pass the signal on, the second one too."""
        self.signum = signum
        self._end(signum)

    def kill(self) -> None:
        """End what is left."""
        self._send(signal.SIGKILL)

    def _end(self, signum: int) -> None:
        """Ask the processes to end, and give them `GRACE` seconds."""
        self.until = min(self.until, time.monotonic() + GRACE)
        self._send(signum)

    def _send(self, signum: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signum)


def run_processes(folder: Path, count: int, sweep: str | None) -> Group:
    """Run `folder`/config.yaml in `count` processes, and return them once all have ended."""
    with tempfile.TemporaryDirectory(prefix="foura-meeting-") as private:  # of mode 0700
        group = Group(folder, Path(private) / "store", count, sweep)
        try:
            with _signals_to(group):
                group.wait()
        finally:
            group.kill()
    return group


@contextlib.contextmanager
def _signals_to(group: Group) -> Iterator[None]:
    """Pass SIGTERM and Ctrl-C on to the processes within the context; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, group.stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _environment(meeting: Path, rank: int, count: int) -> dict[str, str]:
    """The environment of a process, by torchrun's names where it has them: Lightning and `foura.distributed` read those."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    return {
        **os.environ,
        **{name: str(number) for name, number in numbers.items()},
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
        MEETING: str(meeting),
    }
