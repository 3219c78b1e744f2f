"""Overfitting as numbers of a run's curves."""

from collections.abc import Sequence


def onset_epoch(epochs: Sequence[float], val_loss: Sequence[float]) -> float:
    """The epoch of the lowest validation loss (the first of equals): from there on, training no longer helps.

    Equal to the last epoch where the loss was still falling at the end, that is, where no overfitting was seen.

    Raises:
        ValueError: no values, or not one for each epoch.
    """
    if not val_loss or len(epochs) != len(val_loss):
        raise ValueError(f"onset_epoch needs one validation loss an epoch, got {len(epochs)} and {len(val_loss)}")
    return epochs[min(range(len(val_loss)), key=lambda index: val_loss[index])]
