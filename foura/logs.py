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
    ".*worker stopped while some jobs were given.*",  # joblib replaces one that has grown by 300 MB, and loses no run
    ".*will save all targets and predictions.*",
    ".*variance of predictions or target is close to zero.*",  # a constant prediction: counts as correlation 0
    ".*is_gradient_checkpointing. is deprecated.*",
    ".*silently ignoring the lookup.*",  # PEFT's search for a base model's vocabulary, which no run changes
    ".*will assume that the vocabulary was not modified.*",
    ".*embeddings are no longer tied after merging.*",  # an export unties them itself, and compares the two models
    ".*Model (has|with) `tie_word_embeddings=True`.*",
)


def quiet() -> None:
    """Silence device lists and tips of libraries, and advice that does not apply here."""
    # bitsandbytes, which PEFT imports where it is installed, tells of a kernel for 4-bit models that it has no need of
    for name in ("pytorch_lightning", "lightning.pytorch", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in ADVICE:
        warnings.filterwarnings("ignore", message=message)
