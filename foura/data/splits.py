"""The splits that data brings: their names, and where they are found."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
    found = {split: root / name for split, names in SPLIT_NAMES.items() for name in names if (root / name).is_dir()}
    return found if "train" in found else {"train": root}


def split_tables(found: Any, path: str) -> dict[str, tuple[str, Any]]:
    """{split: (its name in the data, table)} of what `hub.read_hub` returned.

    Raises:
        UserError: there is no training split.
    """
    tables = {}
    for split, names in SPLIT_NAMES.items():
        present = [name for name in names if name in found]
        if present:
            tables[split] = (present[0], found[present[0]])
    if "train" not in tables:
        raise UserError(f"dataset.path={path} has no split named train; it has: {', '.join(found)}.")
    return tables


def check_column(key: str, column: str, columns: Iterable[str]) -> None:
    """Refuse a column that the data does not have.

    Raises:
        UserError: the sentence lists those that it has.
    """
    if column not in columns:
        raise UserError(f"{key}={column}: there is no such column; the data has: {', '.join(columns)}.")
