"""From images with captions to the data of a run: cut once, decoded once, encoded to latents once, never mixed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import TensorDataset

from foura.data.draws import cut_at_random, draw_at_random, missing_shares, some_in_order
from foura.data.duplicates import image_contents, kept_items
from foura.data.images import SMALLEST, background_colour, open_image
from foura.data.lengths import fitting_items
from foura.data.records import readable
from foura.data.run_data import RunData
from foura.errors import UserError
from foura.families.diffusion.sources import Captioned

ENCODED_AT_ONCE = 8
LEAST = {"test": 2, "validation": 1}  # items to cut off: a distance between distributions needs two test images


@dataclass(kw_only=True)
class DiffusionData(RunData):
    """Items are (latents (C, H, W), caption tokens (T,), number of the item).

    Attributes:
        images: {split: the same items as images, (n, 3, H, W) in 0..1}.
        captions: {split: their captions}.
    """

    images: dict[str, Tensor]
    captions: dict[str, list[str]]


def prepare_captioned(
    found: dict[str, Captioned],
    cfg: DictConfig,
    seed: int,
    size: int,
    tokenize: Callable[[list[str]], Tensor],
    encode: Callable[[Tensor], Tensor],
    lost: Callable[[str], int] = lambda caption: 0,
) -> DiffusionData:
    """Cut into train, validation and test, decode, crop to squares of `size` pixels, and encode.

    Args:
        cfg: the dataset group. seed: the run's, for the training items that `cfg.limit` keeps.
        tokenize: captions -> tokens (S, T). encode: images (S, 3, H, W) in 0..1 -> latents.
        lost: the number of a caption's tokens that `tokenize` leaves out.

    Raises:
        UserError: too few images to cut, one that cannot be read, or label noise.
    """
    if cfg.label_noise:
        raise UserError("dataset.label_noise replaces classes by others, which captions do not have; leave it out.")
    background_colour(cfg.background)
    splits = _cut(_fitting(_readable(found, cfg), lost, cfg), cfg)
    drawn = draw_at_random(len(splits["train"]), cfg.limit, seed)
    splits["train"] = splits["train"].subset(drawn)
    fixed = some_in_order(drawn, cfg.train_eval_limit, cfg.split_seed)
    images = {name: _squares(part, size, cfg.background, cfg.any_size) for name, part in splits.items()}
    sets = {}
    for name, part in splits.items():
        latents = torch.cat([encode(chunk).cpu() for chunk in images[name].split(ENCODED_AT_ONCE)])
        sets[name] = TensorDataset(latents, tokenize(part.captions), torch.arange(len(latents)))
    return DiffusionData(
        train=sets["train"],
        train_eval=TensorDataset(*(column[fixed] for column in sets["train"].tensors)),
        validation=sets["validation"],
        test=sets["test"],
        sizes={name: len(part) for name, part in splits.items()},
        fingerprint=_fingerprint(images, splits),
        images=images,
        captions={name: part.captions for name, part in splits.items()},
    )


def _cut(found: dict[str, Captioned], cfg: DictConfig) -> dict[str, Captioned]:
    train = found["train"]
    missing = missing_shares(found, {"test": cfg.test_fraction, "validation": cfg.val_fraction})
    counts = {name: max(LEAST[name], round(share * len(train))) for name, share in missing.items()}
    parts = cut_at_random(len(train), counts, cfg.split_seed)
    splits = _without_copies({**found, **{name: train.subset(part) for name, part in parts.items()}}, cfg)
    for name in ("validation", "test"):
        part = splits[name]
        if name in found and cfg.path is not None:  # what was cut is in random order, and bundled letters take turns
            part = part.subset(draw_at_random(len(part), None, cfg.split_seed))
        splits[name] = part.subset(range(min(len(part), cfg.eval_limit)))
    return splits


def _readable(found: dict[str, Captioned], cfg: DictConfig) -> dict[str, Captioned]:
    """The splits without the images that cannot be read, for dataset.unreadable=drop; else the chosen ones are checked."""
    if cfg.unreadable == "refuse":
        return found
    kept = {}
    for split, items in found.items():
        opens = partial(_open, items, any_size=cfg.any_size)
        kept[split] = items.subset(readable(range(len(items)), opens, split, "drop"))
    return kept


def _fitting(found: dict[str, Captioned], lost: Callable[[str], int], cfg: DictConfig) -> dict[str, Captioned]:
    tokens = {split: [lost(caption) for caption in items.captions] for split, items in found.items()}
    kept = fitting_items(tokens, cfg.too_long, "the text encoder takes", "captions")
    return {split: items.subset(kept[split]) for split, items in found.items()}


def _open(items: Captioned, index: int, background: str = "white", any_size: bool = False) -> Image.Image:
    return open_image(items.images[index], items.names[index], "RGB", background, SMALLEST, any_size)


def _without_copies(splits: dict[str, Captioned], cfg: DictConfig) -> dict[str, Captioned]:
    contents = image_contents({split: items.images for split, items in splits.items()})
    kept = kept_items(contents, {split: items.names for split, items in splits.items()}, cfg.duplicates)
    return {split: items.subset(kept[split]) for split, items in splits.items()}


def _squares(items: Captioned, size: int, background: str, any_size: bool) -> Tensor:
    """The middle squares of the images, (n, 3, size, size) in 0..1."""
    return torch.stack([_square(_open(items, index, background, any_size), size) for index in range(len(items))])


def _square(image: Image.Image, size: int) -> Tensor:
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def _fingerprint(images: dict[str, Tensor], splits: dict[str, Captioned]) -> str:
    digest = hashlib.sha256()
    for name in sorted(images):
        digest.update(name.encode())
        digest.update((images[name] * 255).byte().numpy().tobytes())
        digest.update(repr(splits[name].captions).encode())
    return digest.hexdigest()[:16]
