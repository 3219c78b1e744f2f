"""Numbers that describe overfitting, from the learning curves of a run."""

from collections.abc import Sequence


def onset_epoch(epochs: Sequence[float], val_loss: Sequence[float]) -> float:
    """Epoch of the lowest validation loss (the first of equals): later training only overfits.

    The last epoch if the loss was still falling at the end, that is, if no overfitting was seen.

    Raises:
        ValueError: no values, or their number differs from that of the epochs.
    """
    if not val_loss or len(epochs) != len(val_loss):
        raise ValueError(f"onset_epoch needs one validation loss per epoch, got {len(epochs)} and {len(val_loss)}")
    return epochs[min(range(len(val_loss)), key=lambda index: val_loss[index])]
