"""Overfitting as numbers of a run's curves."""

from collections.abc import Sequence


def onset_epoch(val_loss: Sequence[float]) -> int:
    """The epoch after which the validation loss never comes back to its minimum: the first epoch of the lowest value.

    Equal to the last epoch where the loss was still falling at the end, that is, where no overfitting was seen.

    Raises:
        ValueError: no values.
    """
    if not val_loss:
        raise ValueError("onset_epoch needs at least one validation loss")
    return min(range(len(val_loss)), key=lambda epoch: val_loss[epoch])
