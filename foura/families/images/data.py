"""From labelled images to what a run trains, validates and tests on: cut once, decoded once, never mixed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from foura.data.images import open_image
from foura.errors import UserError
from foura.families.images.sources import Labelled, Source
from foura.files import regular

IN_MEMORY_BYTES = 2**30  # decoded images up to this size are kept; larger data is decoded as it is read


@dataclass
class ImageData:
    """The data of one run. Items of every dataset are (image (C, H, W) float32, class index).

    Attributes:
        train: what is trained on.
        train_eval: a fixed part of train, evaluated exactly like validation, so that the gap is a measurement.
        validation: selects the epoch. test: used once, at the end.
        noisy: the training items that dataset.label_noise gave a wrong label, None where there are none.
        fingerprint: hash of the items, their labels and how they are cut (16 hex digits).
    """

    train: Dataset
    train_eval: Dataset
    validation: Dataset
    test: Dataset
    classes: list[str]
    sizes: dict[str, int]
    fingerprint: str
    collate: Any = None
    noisy: Dataset | None = None


def prepare(
    source: Source, cfg: DictConfig, seed: int, image_mode: str, preprocess: Callable[[Image.Image], Tensor]
) -> ImageData:
    """Cut the source into train, validation and test, and decode it for a backbone.

    Splits that the data brings are used as they are; missing ones are cut from train by class with `cfg.split_seed`, so
    that validation and test are the same for every run. `cfg.limit` then draws the training items with the run's seed.

    Raises:
        UserError: too few items or classes to cut, or an image that cannot be read.
    """
    splits = dict(source.splits)
    train = splits["train"]
    # both shares are of all the items, so the second cut has to ask for more of what is left
    share_left = 1.0
    for name, share in (("test", cfg.test_fraction), ("validation", cfg.val_fraction)):
        if name not in splits:
            train, splits[name] = _cut(train, share / share_left, cfg.split_seed, name)
            share_left -= share
    if cfg.limit is not None and cfg.limit < len(train):
        train, _ = _cut(train, 1.0 - cfg.limit / len(train), seed, "train", keep=cfg.limit)
    splits["train"] = mislabelled(train, cfg.label_noise, len(source.classes), seed) if cfg.label_noise else train
    noisy = np.nonzero(splits["train"].labels != train.labels)[0].tolist()
    for name, items in splits.items():
        present = len(set(items.labels.tolist()))
        if present < 2:
            raise UserError(
                f"the {name} split has {present} class{'es' if present != 1 else ''} among {len(items)} items; "
                "a classifier needs at least 2."
            )
    decoded = {name: _decode(items, image_mode, preprocess) for name, items in splits.items()}
    part = range(min(cfg.train_eval_limit, len(train)))
    return ImageData(
        train=decoded["train"],
        train_eval=torch.utils.data.Subset(decoded["train"], part),
        validation=decoded["validation"],
        test=decoded["test"],
        classes=source.classes,
        sizes={name: len(items) for name, items in splits.items()},
        fingerprint=_fingerprint(splits, source.classes),
        noisy=torch.utils.data.Subset(decoded["train"], noisy) if noisy else None,
    )


def _cut(items: Labelled, share: float, seed: int, name: str, keep: int | None = None) -> tuple[Labelled, Labelled]:
    """(the rest, the part cut off), by class; the rest has exactly `keep` items where that is given."""
    if not 0.0 < share < 1.0:
        raise UserError("dataset.val_fraction and dataset.test_fraction together must leave items to train on.")
    sizes = {"test_size": share} if keep is None else {"train_size": keep, "test_size": len(items) - keep}
    try:
        rest, part = train_test_split(
            np.arange(len(items)), stratify=items.labels, random_state=seed, shuffle=True, **sizes
        )
    except ValueError as error:
        count = len(items)
        raise UserError(f"cannot cut a {name} split from {count} items by class: {error}") from None
    return items.subset(rest), items.subset(part)


def mislabelled(items: Labelled, share: float, classes: int, seed: int) -> Labelled:
    """The items with a share of their labels replaced by another class, drawn with the seed: what only memory can fit."""
    generator = np.random.default_rng([seed, 1])
    wrong = generator.permutation(len(items))[: round(share * len(items))]
    labels = items.labels.copy()
    labels[wrong] = (labels[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return Labelled(items.images, labels, items.names)


class _LazyImages(Dataset):
    """Decodes an image when it is asked for."""

    def __init__(self, items: Labelled, mode: str, preprocess: Callable[[Image.Image], Tensor]) -> None:
        self.items, self.mode, self.preprocess = items, mode, preprocess

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = open_image(self.items.images[index], self.items.names[index], self.mode)
        return self.preprocess(image), int(self.items.labels[index])


def _decode(items: Labelled, mode: str, preprocess: Callable[[Image.Image], Tensor]) -> Dataset:
    lazy = _LazyImages(items, mode, preprocess)
    first, _ = lazy[0]
    if first.numel() * first.element_size() * len(lazy) > IN_MEMORY_BYTES:
        return lazy
    images = torch.stack([lazy[index][0] for index in range(len(lazy))])
    return TensorDataset(images, torch.from_numpy(items.labels))


def _fingerprint(splits: dict[str, Labelled], classes: list[str]) -> str:
    digest = hashlib.sha256(repr(classes).encode())
    for name in sorted(splits):
        items = splits[name]
        digest.update(name.encode())
        digest.update(items.labels.tobytes())
        for image, called in zip(items.images, items.names, strict=True):
            if isinstance(image, np.ndarray):
                digest.update(image.tobytes())
            elif isinstance(image, bytes):
                digest.update(image)
            else:
                with regular(Path(image)).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            digest.update(called.encode() if not isinstance(image, str) else b"")
    return digest.hexdigest()[:16]
