"""One run in several processes: how many its config asks for, starting them on this machine, and the main of each."""

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from foura import distributed
from foura.errors import Ended, Interrupted, UserError, traceback_of
from foura.run.signals import handle_sigterm
from foura.tracking.status import RunStatus, read_json

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
    before = signal.getsignal(signal.SIGTERM)
    try:
        ended = _wait_for(folder, processes, sweep)
    finally:
        signal.signal(signal.SIGTERM, before)
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
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # `launch` says what failed
    plan = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(plan, sys.executable)("-m", "foura.run.worker", str(folder), sweep or "")
    except ChildFailedError as error:
        number, first = error.get_first_failure()
        killed = [failure for failure in error.failures.values() if failure.exitcode == -signal.SIGKILL]
        if killed:  # the errors of the others then only say that they lost it
            return _Outcome(f"process {killed[0].local_rank} of {processes} was killed, as when memory runs out", True)
        return _Outcome(f"process {number} of {processes} ended with status {first.exitcode}")
    except (SignalException, KeyboardInterrupt) as error:
        return _Outcome(signum=int(getattr(error, "sigval", signal.SIGINT)))
    return _Outcome()


def load_run() -> Callable[[DictConfig, Path, RunStatus, str | None], dict[str, float]]:
    """`foura.run.run.run`, imported now with all that it needs."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is installed, and it logs then
    from foura.run.run import run

    return run


def main() -> None:
    """One process of `launch`: python -m foura.run.worker FOLDER SWEEP."""
    folder, sweep = Path(sys.argv[1]), sys.argv[2] or None
    # a thread per core in each process is no faster, and far slower on a machine with few cores
    shared = max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(shared))
    cfg: Any = OmegaConf.load(folder / "config.yaml")
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
        (folder / f"error-{distributed.rank()}.txt").write_text(traceback_of(error), encoding="utf-8")
        sys.exit(BROKEN)


if __name__ == "__main__":
    main()
