"""The processes of one run, as torchrun, Slurm's srun or `run.launch` start them.

Rank 0 is the main process: it alone writes to the run's folder and to MLflow. In this module "rank" is the number of a
process; elsewhere it is the rank of a matrix. Light on purpose: torch is imported with the process group.

Where all processes of a run are on one machine, nothing listens beyond its loopback interface.
"""

import os
import socket
from typing import Any

from foura.errors import UserError

MEETING = "FOURA_MEETING"  # environment: the file through which the processes of `run.launch` meet
LOOPBACK = "127.0.0.1"


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) if started() else 0


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1"))) if started() else 1


def is_main() -> bool:
    """True in rank 0; always true in a run of one process."""
    return rank() == 0


def started() -> bool:
    """True if torchrun, srun with several tasks or `run.launch` started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def on_one_machine() -> bool:
    """True if all processes of the run are on this machine."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return os.environ.get("SLURM_STEP_NUM_NODES") == "1"


def init_process_group() -> None:
    """Join the other processes of the run, if there are any. Collectives work on CPU tensors, on GPU machines too.

    Raises:
        UserError: Slurm was asked for processes in a way that does not say how many a node has.
    """
    if not started():
        return
    import torch

    if torch.distributed.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if on_one_machine():
        _stay_on_loopback()
    if MEETING in os.environ:
        store = torch.distributed.FileStore(os.environ[MEETING], world_size())
        torch.distributed.init_process_group(backend, store=store, rank=rank(), world_size=world_size())
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        torch.distributed.init_process_group(backend)
    else:
        _init_with_slurm(backend)


def _stay_on_loopback() -> None:
    """Have the processes talk to each other over the loopback interface, unless the environment says otherwise.

    The default of their libraries is the interface that leads to the network.
    """
    name = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(key, name)


def _init_with_slurm(backend: str) -> None:
    """Join the other processes that srun has started, through a server in rank 0.

    PyTorch's own listens on all interfaces. Where all processes are on one machine it gets a socket that does not.
    """
    import torch
    from lightning_fabric.plugins.environments import SLURMEnvironment

    try:
        slurm = SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:  # srun --ntasks alone
        raise UserError(str(error)) from None
    numbers: dict[str, Any] = {"rank": rank(), "world_size": world_size()}
    if not on_one_machine():
        where = f"tcp://{slurm.main_address}:{slurm.main_port}"
        torch.distributed.init_process_group(backend, init_method=where, **numbers)
        return
    os.environ["MASTER_ADDR"], port = LOOPBACK, slurm.main_port
    socket_of_main = socket.create_server((LOOPBACK, port)).detach() if is_main() else None
    store = torch.distributed.TCPStore(LOOPBACK, port, world_size(), is_main(), master_listen_fd=socket_of_main)
    torch.distributed.init_process_group(backend, store=store, **numbers)


def broadcast(value: Any = None) -> Any:
    """The value that rank 0 passes, in every process; the other processes pass nothing."""
    if world_size() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, 0)
    return box[0]


def all_reduce_sum(*numbers: float) -> list[float]:
    """The sum of each number over all processes."""
    if world_size() == 1:
        return list(numbers)
    import torch

    sums = torch.tensor(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def print_on_main(text: str) -> None:
    """Print a line, in rank 0 alone."""
    if is_main():
        print(text, flush=True)
