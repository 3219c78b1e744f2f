"""The number of processes that a config asks for, checked against those that were started."""

import os

from omegaconf import DictConfig

from foura import distributed
from foura.errors import UserError

ALONE = ("auto", 1, "1")  # values of trainer.devices for a run of one process


def process_count(cfg: DictConfig) -> int:
    """The number of processes that the config asks for.

    Raises:
        UserError: the number is impossible, or differs from the number of processes that were started.
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
            raise UserError(f"trainer.devices={trainer.devices} must be a number of processes per node, such as 2.")
        count = int(trainer.devices) * trainer.num_nodes
    if distributed.started() and count != distributed.world_size():
        raise UserError(
            f"{distributed.world_size()} processes were started, and the config asks for {count} (trainer.devices × "
            "trainer.num_nodes): say trainer=ddp "
            f"trainer.devices={os.environ.get('LOCAL_WORLD_SIZE', distributed.world_size())}."
        )
    if not distributed.started() and trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes} needs a process on every node: start train.py with srun, or with "
            "torchrun --nnodes on each of them."
        )
    if cfg.dataset.batch_size < count:
        raise UserError(
            f"dataset.batch_size={cfg.dataset.batch_size} is shared by {count} processes: it must be {count} or more."
        )
    return count
