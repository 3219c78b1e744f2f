"""The number of optimizer steps of a run: the one that every schedule is planned over, and that the progress shows."""

import math
from collections.abc import Mapping

from omegaconf import DictConfig

from foura.errors import UserError


def optimizer_steps(trainer: DictConfig, batches: int) -> int:
    """The steps that Lightning's Trainer makes with these arguments, its `estimated_stepping_batches`.

    Known before there is a Trainer, because AdaLoRA plans its pruning over them when the adapter is made. The number of
    devices does not enter: they share every batch.

    Args:
        trainer: the config group. batches: of an epoch, with all training data.

    Raises:
        UserError: nothing but trainer.max_time ends the run, so that no schedule can be planned.
    """
    limit, epochs, most = trainer.limit_train_batches, trainer.max_epochs, trainer.max_steps
    if trainer.fast_dev_run:
        limit, epochs, most = int(trainer.fast_dev_run), 1, int(trainer.fast_dev_run)
    if trainer.overfit_batches:
        limit = trainer.overfit_batches
    if epochs is None and most == -1:
        if trainer.max_time is not None:
            raise UserError(
                "trainer.max_time alone does not say how many steps the run makes, which its schedule is planned over: set "
                "trainer.max_epochs or trainer.max_steps too."
            )
        epochs = 1000  # Lightning's default
    if epochs is None:
        return most
    steps = math.ceil(_limited(batches, limit) / trainer.accumulate_grad_batches) * epochs
    return steps if most == -1 else min(steps, most)


def check_limits(trainer: DictConfig, batches: Mapping[str, int]) -> None:
    """Refuse limits that leave nothing to train on, to select the epoch by or to test: Lightning says so after the training.

    Args:
        batches: {"train", "val", "test": number of batches}.

    Raises:
        UserError: one of these.
    """
    if trainer.fast_dev_run:
        return
    for name, count in batches.items():
        key = f"limit_{name}_batches"
        if name != "test" and trainer.overfit_batches:
            key = "overfit_batches"
        if _limited(count, trainer[key]) == 0:
            raise UserError(f"trainer.{key}={trainer[key]} of {count} batches is none, and a run needs one; raise it.")


def _limited(batches: int, limit: float | None) -> int:
    """The batches of an epoch: a whole number is how many, a fraction is a share of all, and 1.0 is all of them."""
    if limit is None:
        return batches
    if isinstance(limit, int) or limit > 1:
        return min(batches, int(limit))
    return int(batches * limit)
