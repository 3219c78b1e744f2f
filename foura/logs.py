"""Silences messages of libraries that do not help a user of this one."""

import logging
import warnings

ADVICE = (
    ".*does not have many workers.*",  # the data is in memory
    ".*number of training batches.*",
    ".*LeafSpec.*",
    ".*Kernel Inception Distance.*",
    ".*dataloader is not resumable.*",  # ours is: run/loop.py
    ".*srun. command is available.*",
    ".*will save all targets and predictions.*",
    ".*variance of predictions or target is close to zero.*",  # a constant prediction: counts as correlation 0
    ".*is_gradient_checkpointing. is deprecated.*",
)


def quiet() -> None:
    """Silence Lightning's device lists and tips, and advice that does not apply here."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in ADVICE:
        warnings.filterwarnings("ignore", message=message)
