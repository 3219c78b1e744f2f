"""From labelled images to the data of a run: cut once, decoded once, never mixed."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from foura.data.draws import cut_by_class, draw_by_class, missing_shares, some_of
from foura.data.duplicates import image_contents, kept_items
from foura.data.images import background_colour, open_image
from foura.data.labels import commonest_share, wrong_labels
from foura.data.records import readable
from foura.data.run_data import RunData
from foura.errors import UserError
from foura.families.images.sources import Labelled, Source
from foura.files import regular

IN_MEMORY_BYTES = 2**30  # decoded images up to this size are kept; larger data is decoded whenever it is read
Opener = Callable[[Any, str], Image.Image]  # (image, its name in messages) -> the decoded image


@dataclass(kw_only=True)
class ImageData(RunData):
    """Items are (image (C, H, W) float32, class index).

    Attributes:
        noisy: the training items that dataset.label_noise gave a wrong label; None without label noise.
    """

    noisy: Dataset | None = None


def prepare(
    source: Source, cfg: DictConfig, seed: int, image_mode: str, preprocess: Callable[[Image.Image], Tensor]
) -> ImageData:
    """Cut the source into train, validation and test by class, and decode it for a backbone.

    Args:
        cfg: the dataset group. seed: the run's, for the training items that `cfg.limit` keeps and for label noise.
        image_mode: Pillow's mode of the images. preprocess: from such an image to a tensor (C, H, W).

    Raises:
        UserError: too few items or classes to cut, or an image that cannot be read.
    """
    background_colour(cfg.background)
    opener = partial(open_image, mode=image_mode, background=cfg.background, any_size=cfg.any_size)
    splits = _without_copies(_cut(_readable(source.splits, opener, cfg), cfg), cfg)
    train = splits["train"]
    if cfg.limit is not None and cfg.limit < len(train):
        train = train.subset(draw_by_class(train.labels, cfg.limit, seed))
    for name in ("validation", "test"):
        if cfg.eval_limit < len(held_out := splits[name]):
            drawn = draw_by_class(held_out.labels, cfg.eval_limit, cfg.split_seed, "dataset.eval_limit")
            splits[name] = held_out.subset(drawn)
    labels = wrong_labels(train.labels, cfg.label_noise, len(source.classes), seed) if cfg.label_noise else train.labels
    noisy = np.flatnonzero(labels != train.labels).tolist()
    splits["train"] = Labelled(train.images, labels, train.names)
    for name, items in splits.items():
        _check_classes(name, items)
    decoded = {name: _decode(items, opener, preprocess) for name, items in splits.items()}
    return ImageData(
        train=decoded["train"],
        train_eval=Subset(decoded["train"], some_of(len(train), cfg.train_eval_limit, cfg.split_seed)),
        validation=decoded["validation"],
        test=decoded["test"],
        classes=source.classes,
        commonest=commonest_share(splits["validation"].labels),
        sizes={name: len(items) for name, items in splits.items()},
        fingerprint=_fingerprint(splits, source.classes),
        noisy=Subset(decoded["train"], noisy) if noisy else None,
    )


def _cut(found: dict[str, Labelled], cfg: DictConfig) -> dict[str, Labelled]:
    splits, train, left = dict(found), found["train"], 1.0
    shares = {"test": cfg.test_fraction, "validation": cfg.val_fraction}
    for name, share in missing_shares(found, shares).items():
        # shares are of all the items, so the second cut takes more of those that are left
        rest, part = cut_by_class(train.labels, share / left, cfg.split_seed, name)
        train, splits[name] = train.subset(rest), train.subset(part)
        left -= share
    return {**splits, "train": train}


def _readable(found: dict[str, Labelled], opener: Opener, cfg: DictConfig) -> dict[str, Labelled]:
    """The splits without the images that cannot be read, for dataset.unreadable=drop; else they are checked when chosen."""
    if cfg.unreadable == "refuse":
        return found
    kept = {}
    for split, items in found.items():

        def read(index: int, items: Labelled = items) -> Image.Image:
            return opener(items.images[index], items.names[index])

        kept[split] = items.subset(readable(range(len(items)), read, split, "drop"))
    return kept


def _without_copies(splits: dict[str, Labelled], cfg: DictConfig) -> dict[str, Labelled]:
    contents = image_contents({split: items.images for split, items in splits.items()})
    kept = kept_items(contents, {split: items.names for split, items in splits.items()}, cfg.duplicates)
    return {
        split: items if len(kept[split]) == len(items) else items.subset(kept[split]) for split, items in splits.items()
    }


def _check_classes(name: str, items: Labelled) -> None:
    present = len(set(items.labels.tolist()))
    if present < 2:
        raise UserError(
            f"the {name} split has {present} class{'es' if present != 1 else ''} among {len(items)} items; "
            "a classifier needs at least 2."
        )


class _LazyImages(Dataset):
    """Decodes an image whenever it is read."""

    def __init__(self, items: Labelled, opener: Opener, preprocess: Callable[[Image.Image], Tensor]) -> None:
        self.items, self.opener, self.preprocess = items, opener, preprocess

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.preprocess(self.open(index)), int(self.items.labels[index])

    def open(self, index: int) -> Image.Image:
        return self.opener(self.items.images[index], self.items.names[index])


def _decode(items: Labelled, opener: Opener, preprocess: Callable[[Image.Image], Tensor]) -> Dataset:
    lazy = _LazyImages(items, opener, preprocess)
    first, _ = lazy[0]
    if first.numel() * first.element_size() * len(lazy) > IN_MEMORY_BYTES:
        _read_once(lazy)
        return lazy
    images = torch.stack([lazy[index][0] for index in range(len(lazy))])
    return TensorDataset(images, torch.from_numpy(items.labels))


def _read_once(lazy: _LazyImages) -> None:
    """Decode every image, so that one that cannot be read is found before the training and not after hours of it."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda index: lazy.open(index) and None, range(len(lazy))):
            pass


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
