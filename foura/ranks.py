"""The processes of one run (ranks), as torchrun or Slurm's srun start them, or as we do for trainer.devices=N.

Rank 0 leads: it alone holds the run's folder, its status and its MLflow run. Light on purpose: torch comes with `join`.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from foura.errors import Ended, Interrupted, UserError
from foura.tracking.status import RunStatus, read_json

ALONE = ("auto", 1, "1")  # devices of a run that is one process
REFUSED = 3  # exit status of a rank that ends with a sentence, which its leader's status.json has
BROKEN = 4  # … with a traceback, which is in error-RANK.txt
LEADER_SPEAKS = 10.0  # seconds that the others wait with their own end: the first to go takes the rest with it


def rank() -> int:
    """This process among those of the run; 0 leads."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) if started() else 0


def world() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1"))) if started() else 1


def started() -> bool:
    """Whether torchrun, or srun with several tasks, started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def wanted(cfg: DictConfig) -> int:
    """How many processes the config asks for.

    Raises:
        UserError: a number that cannot be had, or is not the number that there is.
    """
    trainer = cfg.trainer
    if trainer.strategy == "auto":
        count = 1
        if trainer.devices not in ALONE or trainer.num_nodes > 1:
            raise UserError(
                f"trainer.devices={trainer.devices} on trainer.num_nodes={trainer.num_nodes} needs a strategy: "
                "trainer=ddp (a copy of the model on each) or trainer=fsdp (the model in parts)."
            )
    else:
        if isinstance(trainer.devices, bool) or not str(trainer.devices).isdigit() or int(trainer.devices) < 1:
            raise UserError(f"trainer.devices={trainer.devices} must be a number of processes a node, such as 2.")
        count = int(trainer.devices) * trainer.num_nodes
    if started() and count != world():
        raise UserError(
            f"{world()} processes were started, and the config asks for {count} (trainer.devices × trainer.num_nodes): "
            f"say trainer=ddp trainer.devices={os.environ.get('LOCAL_WORLD_SIZE', world())}."
        )
    if not started() and trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes} needs a process on every node: start train.py with srun, or with "
            "torchrun --nnodes on each of them."
        )
    if cfg.dataset.batch_size < count:
        raise UserError(
            f"dataset.batch_size={cfg.dataset.batch_size} is shared by {count} processes: it must be {count} or more."
        )
    return count


def join() -> None:
    """Meet the other ranks; collectives work from here on, of CPU tensors too."""
    import torch

    if not started() or torch.distributed.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        torch.distributed.init_process_group(backend)
        return
    from lightning_fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    where = f"tcp://{slurm.main_address}:{slurm.main_port}"
    torch.distributed.init_process_group(backend, init_method=where, rank=rank(), world_size=world())


def tell(word: Any = None) -> Any:
    """What the leader says, on every rank."""
    if world() == 1:
        return word
    import torch

    box = [word]
    torch.distributed.broadcast_object_list(box, 0)
    return box[0]


def total(*numbers: float) -> list[float]:
    """The sums over ranks of some numbers."""
    if world() == 1:
        return list(numbers)
    import torch

    sums = torch.tensor(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def heed_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does, so that what is open is closed and status.json says how it ended."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, exit_on_signal)


def exit_on_signal(signum: int, frame: FrameType | None) -> None:
    """Handler of a signal: end as a shell would say it."""
    sys.exit(128 + signum)


@contextmanager
def following() -> Iterator[tuple[Path, RunStatus]]:
    """A folder and a status for a rank that does not lead: what it writes is nobody's."""
    try:
        with tempfile.TemporaryDirectory(prefix="foura-rank-") as scratch, RunStatus(Path(scratch)) as status:
            yield Path(scratch), status
    except UserError:
        time.sleep(LEADER_SPEAKS)
        sys.exit(REFUSED)


def launch(folder: Path, status: RunStatus, processes: int, sweep: str | None) -> None:
    """Run what `folder`/config.yaml says in several processes on this machine, and wait for them.

    Raises:
        Ended: in the state and with the sentence that the leading process left, or for one that died without a word.
        Interrupted: a signal came to this process, and was passed on.
    """

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what failed is said below
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
    killed: list[Any] = []
    said, state, signum, before = "", "failed", 0, signal.getsignal(signal.SIGTERM)
    try:
        elastic_launch(plan, sys.executable)("-m", "foura.ranks", str(folder), sweep or "")
    except ChildFailedError as error:
        killed = [failure for failure in error.failures.values() if failure.exitcode == -signal.SIGKILL]
        number, first = error.get_first_failure()
        if killed:  # what the others then say is that they lost it
            said, state = (
                f"process {killed[0].local_rank} of {processes} was killed, as when memory runs out",
                "interrupted",
            )
        else:
            said = f"process {number} of {processes} ended with status {first.exitcode}"
    except (SignalException, KeyboardInterrupt) as error:
        signum = int(getattr(error, "sigval", signal.SIGINT))
    finally:
        signal.signal(signal.SIGTERM, before)
    left = read_json(folder / "status.json")
    status.fields.update({key: value for key, value in left.items() if key not in ("state", "error", "seconds")})
    if signum and left.get("state") != "finished":
        raise Interrupted(left.get("error") or f"stopped by {signal.Signals(signum).name}.", signum)
    if left.get("state") in ("failed", "diverged", "interrupted") and not killed:
        raise Ended(left.get("error") or said, left["state"])
    if said:
        raise Ended(f"{said}; the same command goes on from the last epoch that was kept.", state)


def main() -> None:
    """One rank of `launch`: python -m foura.ranks FOLDER SWEEP."""
    folder, sweep = Path(sys.argv[1]), sys.argv[2] or None
    # so many threads in each process are no faster, and far slower where cores are few
    shared = max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(shared))
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    heed_sigterm()
    join()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from foura.run.run import run

    try:
        if rank() > 0:
            with following() as (scratch, status):
                run(cfg, scratch, status, sweep)
        else:
            with RunStatus(folder, held=True) as status:
                run(cfg, folder, status, sweep)
    except UserError:
        sys.exit(REFUSED)  # status.json has the sentence
    except Exception:
        (folder / f"error-{rank()}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(BROKEN)


if __name__ == "__main__":
    main()
