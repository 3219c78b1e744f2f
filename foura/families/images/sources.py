"""Where images come from: the embedded digits, a folder of classes, or anything that `datasets.load_dataset` reads.

Each source gives `Labelled` splits with images still encoded; cutting and decoding is the same for all (`splits`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from foura.data.hub import read_hub, rows
from foura.data.images import encoded, image_files
from foura.data.splits import check_column, existing, split_folders, split_tables
from foura.errors import UserError, reason

EXPECTED = "Expected FOLDER/<class>/<image files>, or FOLDER/train/<class>/…."


@dataclass
class Labelled:
    """Images and their class indices; an image is a uint8 array (H, W), a path, the bytes of a file, or a Pillow image."""

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
    """What was found: {"train": ..., and "validation" and "test" where the data brings them} and the class names."""

    splits: dict[str, Labelled]
    classes: list[str]


def open_source(cfg: DictConfig) -> Source:
    """The data that `cfg` (the dataset group) names, restricted to `cfg.classes`.

    Raises:
        UserError: a path, column, split or class that is not there.
    """
    readers: dict[str, Callable[[DictConfig], Source]] = {"digits": _digits, "imagefolder": _folder, "hf": _hub}
    source = readers[cfg.source](cfg)
    return _restrict(source, list(cfg.classes)) if cfg.classes is not None else source


def _digits(cfg: DictConfig) -> Source:
    from foura.bundled.digits import load_digit_images

    images, labels = load_digit_images()
    names = [f"digit {index}" for index in range(len(labels))]
    return Source({"train": Labelled(list(images), labels, names)}, [str(digit) for digit in range(10)])


def _folder(cfg: DictConfig) -> Source:
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes

    root = existing(cfg.path)
    if not root.is_dir():
        raise UserError(f"dataset.path={cfg.path} is not a folder.")
    folders = split_folders(root)
    try:
        classes, index_of = find_classes(str(folders["train"]))
        splits = {}
        for split, folder in folders.items():
            extra = set(find_classes(str(folder))[0]) - set(classes)
            if extra:
                raise UserError(f"{folder} has classes that the training folder lacks: {', '.join(sorted(extra))}.")
            of = {name: image_files(folder / name, IMG_EXTENSIONS) for name in classes}
            if split == "train" and not all(of.values()):
                without = ", ".join(name for name in classes if not of[name])
                raise UserError(f"{folder}: no images for {without} ({', '.join(IMG_EXTENSIONS)}). {EXPECTED}")
            found = sorted((str(path), index_of[name]) for name in classes for path in of[name])
            paths = [path for path, _ in found]
            splits[split] = Labelled(paths, np.array([label for _, label in found], dtype=np.int64), paths)
    except OSError as error:
        raise UserError(f"dataset.path={cfg.path}: {reason(error)} {EXPECTED}") from None
    return Source(splits, classes)


def _hub(cfg: DictConfig) -> Source:
    splits: dict[str, Labelled] = {}
    classes: list[str] | None = None
    for split, (_, table) in split_tables(read_hub(cfg.path), cfg.path).items():
        splits[split], classes = _hub_split(table, cfg, classes)
    assert classes is not None
    return Source(splits, classes)


def _hub_split(table: Any, cfg: DictConfig, classes: list[str] | None) -> tuple[Labelled, list[str]]:
    import datasets

    columns = {"dataset.columns.image": cfg.columns.image, "dataset.columns.label": cfg.columns.label}
    for key, column in columns.items():
        check_column(key, column, table.column_names)
    image_column, label_column = columns.values()
    if not isinstance(table.features[image_column], datasets.Image):
        raise UserError(f"dataset.columns.image={image_column} holds {table.features[image_column]}, not images.")
    table = table.select_columns([image_column, label_column]).cast_column(image_column, datasets.Image(decode=False))
    feature, values = table.features[label_column], rows(table[label_column])
    unlabelled = [value for value in values if not isinstance(value, str | int | float) or value != value]
    if unlabelled or not values:
        what = f"an item without a label ({unlabelled[0]!r})" if values else "no items"
        raise UserError(f"dataset.columns.label={label_column} has {what}: classes are texts or numbers.")
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        labels = np.array(values, dtype=np.int64)
        if labels.min() < 0:
            raise UserError(f"dataset.columns.label={label_column} has items without a label (-1).")
    else:
        names = [str(value) for value in sorted(set(values))] if classes is None else classes
        index_of = {name: index for index, name in enumerate(names)}
        unknown = {str(value) for value in values} - set(names)
        if unknown:
            raise UserError(f"a later split has classes that train lacks: {', '.join(sorted(unknown))}.")
        labels = np.array([index_of[str(value)] for value in values], dtype=np.int64)
    records = rows(table[image_column])
    called = [f"item {index} ({(record or {}).get('path') or 'no file name'})" for index, record in enumerate(records)]
    return Labelled(encoded(records), labels, called), names


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
