"""One run in several processes: how many its config asks for, starting them on this machine, and the main of each."""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from foura import distributed
from foura.atomic import write_text
from foura.config import read, register
from foura.errors import Ended, Interrupted, UserError, traceback_of
from foura.run.launch import run_processes
from foura.run.signals import handle_sigterm
from foura.tracking.status import RunStatus, read_json
from foura.untrusted import Folder

REFUSED = 3  # exit status of a process that ends with a sentence, which is in status.json
BROKEN = 4  # … that ends with a traceback, which is in error-RANK.txt
WAIT_FOR_MAIN = 10.0  # seconds that other processes wait before they exit: the first to exit ends the rest too


@contextmanager
def scratch_run() -> Iterator[tuple[Path, RunStatus]]:
    """A temporary folder and status for a process other than rank 0: nobody reads them."""
    try:
        with tempfile.TemporaryDirectory(prefix="foura-rank-") as folder, RunStatus(Path(folder)) as status:
            yield Path(folder), status
    except UserError:
        time.sleep(WAIT_FOR_MAIN)  # rank 0 writes the sentence
        sys.exit(REFUSED)


def launch(folder: Path, status: RunStatus, processes: int, sweep: str | None) -> None:
    """Run `folder`/config.yaml in several processes on this machine, and wait for them.

    Raises:
        Ended: with the state and the sentence that rank 0 left, or with those of a process that was killed.
        Interrupted: this process received a signal, and passed it on.
    """
    ended = _wait_for(folder, processes, sweep)
    left = read_json(folder / "status.json")
    status.fields.update({key: value for key, value in left.items() if key not in ("state", "error", "seconds")})
    if ended.signum and left.get("state") != "finished":
        raise Interrupted(left.get("error") or f"stopped by {signal.Signals(ended.signum).name}.", ended.signum)
    if left.get("state") in ("failed", "diverged", "interrupted") and not ended.killed:
        raise Ended(left.get("error") or ended.error, left["state"])
    if ended.error:
        state = "interrupted" if ended.killed else "failed"
        raise Ended(f"{ended.error}; the same command resumes from the last checkpoint.", state)


class _Outcome:
    """The end of the processes of `launch`: an error in words, true if one was killed, our own signal."""

    def __init__(self, error: str = "", killed: bool = False, signum: int = 0) -> None:
        self.error, self.killed, self.signum = error, killed, signum


def _wait_for(folder: Path, processes: int, sweep: str | None) -> _Outcome:
    group = run_processes(folder, processes, sweep)
    if group.signum:
        return _Outcome(signum=group.signum)
    killed = [rank for rank, status in group.ended.items() if status == -signal.SIGKILL]
    if killed:  # the errors of the others then only say that they lost it
        return _Outcome(f"process {killed[0]} of {processes} was killed, as when memory runs out", True)
    failed = next(((rank, status) for rank, status in group.ended.items() if status), None)
    return _Outcome(f"process {failed[0]} of {processes} ended with status {failed[1]}") if failed else _Outcome()


def load_run() -> Callable[[DictConfig, Path, RunStatus, str | None], dict[str, float]]:
    """`foura.run.run.run`, imported now with all that it needs."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is installed, and it logs then
    from foura.run.run import run

    return run


def main() -> None:
    """One process of `launch`: python -P -m foura.run.worker FOLDER SWEEP."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    folder, sweep = Path(sys.argv[1]), sys.argv[2] or None
    # a thread per core in each process is no faster, and far slower on a machine with few cores
    shared = max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(shared))
    register()
    cfg = read(folder / "config.yaml", Folder(folder))
    handle_sigterm()
    distributed.init_process_group()
    run = load_run()
    try:
        if distributed.is_main():
            with RunStatus(folder, held=True) as status:
                run(cfg, folder, status, sweep)
        else:
            with scratch_run() as (scratch, status):
                run(cfg, scratch, status, sweep)
    except UserError:
        sys.exit(REFUSED)  # status.json has the sentence
    except Exception as error:
        write_text(folder / f"error-{distributed.rank()}.txt", traceback_of(error))
        sys.exit(BROKEN)


def _end_with_launcher() -> None:
    """End this process when the one that started it is gone, which holds the lock of the run: it has closed our stdin."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
