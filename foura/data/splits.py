"""The splits of data: their names, where they are found, and how those that the data does not bring are cut from train.

A split that the data brings is used as it is. Cuts depend on `dataset.split_seed` alone, so that validation and test data are
the same for every run; the run's seed then draws the `dataset.limit` training items.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foura.errors import UserError
from foura.files import find

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


def existing(path: str) -> Path:
    """The place that dataset.path names.

    Raises:
        UserError: nothing is there.
    """
    return find(path, "dataset.path")


def split_folders(root: Path) -> dict[str, Path]:
    """{split: folder} of the split folders in `root`; without a training folder, `root` itself is the training data."""
    found = {split: root / name for split, name in _present(lambda name: (root / name).is_dir()).items()}
    return found if "train" in found else {"train": root}


def split_files(root: Path, suffix: str) -> dict[str, Path]:
    """{split: file} of a file, which is the training data, or of a folder with train.SUFFIX and perhaps the other splits.

    Raises:
        UserError: a folder without a training file.
    """
    if not root.is_dir():
        return {"train": root}
    found = _present(lambda name: (root / f"{name}{suffix}").is_file())
    if "train" not in found:
        has = ", ".join(sorted(entry.name for entry in root.iterdir()))
        raise UserError(f"{root} has no train{suffix}; it has: {has}.")
    return {split: root / f"{name}{suffix}" for split, name in found.items()}


def split_tables(found: Any, path: str) -> dict[str, tuple[str, Any]]:
    """{split: (its name in the data, table)} of the tables that `hub.read_hub` returned.

    Raises:
        UserError: there is no training split.
    """
    names = _present(lambda name: name in found)
    if "train" not in names:
        raise UserError(f"dataset.path={path} has no split named train; it has: {', '.join(found)}.")
    return {split: (name, found[name]) for split, name in names.items()}


def _present(has: Callable[[str], bool]) -> dict[str, str]:
    """{split: the first of its names that the data has}."""
    first = {split: next(filter(has, names), None) for split, names in SPLIT_NAMES.items()}
    return {split: name for split, name in first.items() if name is not None}


def check_column(key: str, column: str, columns: Iterable[str]) -> None:
    """Refuse a column that the data does not have.

    Raises:
        UserError: the sentence lists those that it has.
    """
    if column not in columns:
        raise UserError(f"{key}={column}: there is no such column; the data has: {', '.join(columns)}.")


def missing_shares(found: Container[str], shares: Mapping[str, float]) -> dict[str, float]:
    """{split: share of all items} of the splits to cut from train, because the data does not bring them.

    Args:
        shares: of every split but train, in the order in which they are cut.

    Raises:
        UserError: nothing would be left to train on.
    """
    missing = {name: share for name, share in shares.items() if name not in found}
    if sum(missing.values()) >= 1.0:
        raise UserError("dataset.val_fraction and dataset.test_fraction together must leave items to train on.")
    return missing


def cut_at_random(total: int, counts: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """{"train": …, and each split of `counts`: …}: indices of `total` items, in random order.

    Raises:
        UserError: nothing is left to train on.
    """
    order = np.random.default_rng(seed).permutation(total)
    parts = {}
    for name, count in counts.items():
        parts[name], order = order[:count], order[count:]
    if not len(order):
        raise UserError(f"{total} items are too few to cut into train, validation and test.")
    return {"train": order, **parts}


def cut_by_class(labels: np.ndarray, share: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the rest, indices of the part): every class gives the part its share.

    Args:
        labels: class indices, int64 (items,). name: what a message calls the part.

    Raises:
        UserError: a class with too few items.
    """
    return _by_class(labels, seed, f"cut a {name} split from", {"test_size": share})


def draw_by_class(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Indices of exactly `limit` items, fewer than there are, with the shares that the classes have.

    Raises:
        UserError: a class with too few items.
    """
    sizes = {"train_size": limit, "test_size": len(labels) - limit}
    return _by_class(labels, seed, "draw dataset.limit items from", sizes)[0]


def _by_class(labels: np.ndarray, seed: int, what: str, sizes: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split  # takes a second to import, for images alone

    try:
        rest, part = train_test_split(np.arange(len(labels)), stratify=labels, random_state=seed, **sizes)
    except ValueError as error:
        raise UserError(f"cannot {what} {len(labels)} items by class: {error}") from None
    return rest, part


def draw_at_random(total: int, limit: int | None, seed: int) -> np.ndarray:
    """Indices of at most `limit` of `total` items, in random order."""
    return np.random.default_rng([seed, 0]).permutation(total)[:limit]
