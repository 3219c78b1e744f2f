"""Sources of labelled images: the bundled digits, a folder of classes, or anything that `datasets.load_dataset` reads.

A source gives `Labelled` splits with the images still encoded; `data.prepare` cuts and decodes them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from foura.data.hub import encoded, image_records, read_hub, rows
from foura.data.images import IMAGE_FILES
from foura.data.listing import data_files, data_folders
from foura.data.records import UNLABELLED, blank, refuse_unlabelled, say_unlabelled
from foura.data.splits import check_column, existing, refuse_splits_within, split_folders, split_tables
from foura.errors import UserError

EXPECTED = "Expected FOLDER/<class>/<image files>, or FOLDER/train/<class>/…."


@dataclass
class Labelled:
    """Images and their class indices; an image is a uint8 array (H, W), a path, or the bytes of a file."""

    images: Sequence[Any]
    labels: np.ndarray  # int64 (items,)
    names: Sequence[str]  # what a message calls an item

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Labelled":
        order = [int(index) for index in indices]
        return Labelled([self.images[i] for i in order], self.labels[order], [self.names[i] for i in order])


@dataclass
class Source:
    """{"train": …, and "validation" and "test" where the data brings them}, and the class names."""

    splits: dict[str, Labelled]
    classes: list[str]


def open_source(cfg: DictConfig) -> Source:
    """The data that `cfg` (the dataset group) names, restricted to `cfg.classes`.

    Raises:
        UserError: a path, column, split or class that is not there.
    """
    readers: dict[str, Callable[[DictConfig], Source]] = {"digits": _digits, "imagefolder": _folders, "hf": _hub}
    source = readers[cfg.source](cfg)
    return _restrict(source, list(cfg.classes)) if cfg.classes is not None else source


def _digits(cfg: DictConfig) -> Source:
    from foura.bundled.digits import load_digit_images

    images, labels = load_digit_images()
    names = [f"digit {index}" for index in range(len(labels))]
    return Source({"train": Labelled(list(images), labels, names)}, [str(digit) for digit in range(10)])


def _folders(cfg: DictConfig) -> Source:
    root = existing(cfg)
    if not root.is_dir():
        raise UserError(f"dataset.path={cfg.path} is not a folder.")
    folders = split_folders(root, cfg.splits, IMAGE_FILES)
    classes = [folder.name for folder in data_folders(folders["train"])]
    if not classes:
        raise UserError(f"dataset.path={cfg.path}: {folders['train']} has no folders of classes. {EXPECTED}")
    return Source({split: _folder(folder, split, classes) for split, folder in folders.items()}, classes)


def _folder(folder: Path, split: str, classes: list[str]) -> Labelled:
    extra = {inner.name for inner in data_folders(folder)} - set(classes)
    if extra:
        raise UserError(f"{folder} has classes that the training folder lacks: {', '.join(sorted(extra))}.")
    files = {name: data_files(folder / name, IMAGE_FILES) for name in classes if (folder / name).is_dir()}
    without = [name for name in classes if not files.get(name)]
    if split == "train" and without:
        raise UserError(f"{folder}: no images for {', '.join(without)} ({', '.join(IMAGE_FILES)}). {EXPECTED}")
    for name in files:
        refuse_splits_within(folder / name)
    found = sorted((str(path), classes.index(name)) for name, paths in files.items() for path in paths)
    paths = [path for path, _ in found]
    return Labelled(paths, np.array([label for _, label in found], dtype=np.int64), paths)


def _hub(cfg: DictConfig) -> Source:
    splits: dict[str, Labelled] = {}
    classes: list[str] | None = None
    for split, (_, table) in _labelled(split_tables(read_hub(cfg), cfg.path, cfg.splits), cfg.columns.label).items():
        splits[split], classes = _table(table, split, cfg, classes)
    assert classes is not None
    return Source(splits, classes)


def _labelled(tables: Mapping[str, tuple[str, Any]], column: str) -> dict[str, tuple[str, Any]]:
    """The tables without those, other than train, in which no item has a label; which ones, is said."""
    without = [
        split
        for split, (_, table) in tables.items()
        if split != "train" and (column not in table.column_names or _unlabelled(table, column))
    ]
    say_unlabelled(without)
    return {split: named for split, named in tables.items() if split not in without}


def _unlabelled(table: Any, column: str) -> bool:
    values = rows(table, column)
    return bool(values) and all(blank(value) or value == UNLABELLED for value in values)


def _table(table: Any, split: str, cfg: DictConfig, classes: list[str] | None) -> tuple[Labelled, list[str]]:
    """(items, class names); `classes` are those of the training split, None for itself."""
    records = image_records(table, cfg.columns.image)
    check_column("dataset.columns.label", cfg.columns.label, table.column_names)
    called = [f"item {index} ({(record or {}).get('path') or 'no file name'})" for index, record in enumerate(records)]
    values = rows(table, cfg.columns.label)
    without = [name for name, value in zip(called, values, strict=True) if _hidden(value, table, cfg.columns.label)]
    refuse_unlabelled(without, len(values), split, cfg.columns.label)
    labels, names = _labels(table, cfg.columns.label, values, classes)
    return Labelled(encoded(records, cfg), labels, called), names


def _hidden(value: Any, table: Any, column: str) -> bool:
    """True for no label; -1 is one where the column does not declare its classes."""
    import datasets

    return blank(value) or value != value or (isinstance(table.features[column], datasets.ClassLabel) and value < 0)


def _labels(table: Any, column: str, values: list[Any], classes: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """(class indices int64 (items,), class names): as the column declares them, else its distinct values in order."""
    import datasets

    wrong = [value for value in values if not isinstance(value, str | int | float)]
    if wrong:
        raise UserError(f"dataset.columns.label={column} holds {wrong[0]!r}: classes are texts or numbers.")
    if isinstance(table.features[column], datasets.ClassLabel):
        return np.array(values, dtype=np.int64), list(table.features[column].names)
    names = [str(value) for value in sorted(set(values))] if classes is None else classes
    index_of = {name: index for index, name in enumerate(names)}
    unknown = {str(value) for value in values} - set(names)
    if unknown:
        raise UserError(f"a later split has classes that train lacks: {', '.join(sorted(unknown))}.")
    return np.array([index_of[str(value)] for value in values], dtype=np.int64), names


def _restrict(source: Source, wanted: list[str]) -> Source:
    unknown = [name for name in wanted if name not in source.classes]
    if unknown:
        raise UserError(
            f"dataset.classes: {', '.join(unknown)} is not a class of the data; it has: {', '.join(source.classes)}."
        )
    old = [source.classes.index(name) for name in wanted]
    splits = {}
    for split, items in source.splits.items():
        kept = items.subset(np.flatnonzero(np.isin(items.labels, old)))
        kept.labels = np.array([old.index(label) for label in kept.labels], dtype=np.int64)
        splits[split] = kept
    return Source(splits, wanted)
