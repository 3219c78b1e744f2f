"""The data of one run, as a family hands it to the training."""

from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True)
class RunData:
    """Datasets with `len` and items by index, cut once and decoded once.

    Attributes:
        train: what is trained on.
        train_eval: a fixed part of the training data, evaluated exactly like validation, so that the gap is a measurement.
        validation: selects the epoch. test: used once, at the end.
        sizes: {split: number of items}.
        fingerprint: hash of the items, their labels and how they are cut (16 hex digits).
        classes: their names; None for data without classes.
        commonest: the share of the validation items that are of the commonest class; None without classes.
        collate: from a list of items to a batch; None for PyTorch's own.
    """

    train: Any
    train_eval: Any
    validation: Any
    test: Any
    sizes: dict[str, int]
    fingerprint: str
    classes: list[str] | None = None
    commonest: float | None = None
    collate: Any = None

    @property
    def observed(self) -> Any:
        """The items of train_eval in the form that is trained on: on their inputs layers and gates are looked at."""
        return self.train_eval
