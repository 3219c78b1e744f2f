"""Pictures with captions for diffusion models: the embedded letters, a folder, or what `datasets.load_dataset` reads.

A folder holds images, and captions in metadata.jsonl ({"file_name": …, "text": …} a line, as Hugging Face's imagefolder
has it); or all of its images share one prompt, as in DreamBooth (`dataset.prompt`).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import TensorDataset

from foura.data.hub import read_hub, rows
from foura.data.images import encoded, image_files, open_image
from foura.data.records import spellable
from foura.data.splits import check_column, existing, split_folders, split_tables
from foura.errors import UserError
from foura.files import json_lines

ENCODED_AT_ONCE = 8


@dataclass
class Captioned:
    """Images (uint8 arrays, paths, bytes of files or Pillow images) and their captions."""

    images: list[Any]
    captions: list[str]
    names: list[str]

    def subset(self, indices: Any) -> "Captioned":
        order = [int(index) for index in indices]
        return Captioned(*([column[i] for i in order] for column in (self.images, self.captions, self.names)))


@dataclass
class DiffusionData:
    """The data of one run. Items of every dataset are (latents (C, H, W), caption tokens (T,), number of the item).

    Attributes: as of `splits.ImageData`; `pictures` and `captions` hold the same items as images (n, 3, H, W) in 0..1 and as
        texts, by split.
    """

    train: TensorDataset
    train_eval: TensorDataset
    validation: TensorDataset
    test: TensorDataset
    sizes: dict[str, int]
    fingerprint: str
    pictures: dict[str, Tensor]
    captions: dict[str, list[str]]
    collate: Any = None


def open_captioned(cfg: DictConfig) -> dict[str, Captioned]:
    """{"train": …, and "validation" and "test" where the data brings them}.

    Raises:
        UserError: a path, column or caption that is not there.
    """
    if cfg.source == "letters":
        return _letters(cfg)
    return _folders(cfg) if cfg.source == "imagefolder" else _hub(cfg)


def _letters(cfg: DictConfig) -> dict[str, Captioned]:
    from foura.bundled.letters import render_letters

    splits = {}
    for seed, (name, count) in enumerate((("train", 260), ("validation", 104), ("test", 208))):
        images, captions = render_letters(count, 1_000_000 + seed, cfg.style)  # far from the seeds of the pretraining
        splits[name] = Captioned(list(images), captions, [f"{name} letter {number}" for number in range(count)])
    return splits


def _folders(cfg: DictConfig) -> dict[str, Captioned]:
    root = existing(cfg.path)
    if not root.is_dir():
        raise UserError(f"dataset.path={cfg.path} is not a folder.")
    return {split: _folder(folder, cfg) for split, folder in split_folders(root).items()}


def _folder(folder: Path, cfg: DictConfig) -> Captioned:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files = image_files(folder, IMG_EXTENSIONS)
    if not files:
        raise UserError(f"{folder} has no images ({', '.join(IMG_EXTENSIONS)}).")
    names = [file.relative_to(folder).as_posix() for file in files]
    listed = folder / "metadata.jsonl"
    if cfg.prompt is not None:
        captions = dict.fromkeys(names, cfg.prompt)
    elif listed.is_file():
        captions = _listed(listed, cfg.columns.text)
    else:
        raise UserError(
            f"{folder} has no captions: add metadata.jsonl with a line "
            '{"file_name": "…", "text": "…"} for each image, or say dataset.prompt="a photo of sks dog" for all of them.'
        )
    without = [name for name in names if not captions.get(name, "").strip()]
    if without:
        raise UserError(
            f"{listed} has captions for {len(names) - len(without)} of {len(names)} images; none for "
            f"{', '.join(without[:3])}{' …' if len(without) > 3 else ''}."
        )
    return Captioned([str(file) for file in files], [captions[name] for name in names], [str(file) for file in files])


def _listed(path: Path, column: str) -> dict[str, str]:
    captions = {}
    for line, row in json_lines(path):
        file, caption = row.get("file_name"), row.get(column)
        if not isinstance(file, str) or not isinstance(caption, str):
            has = ", ".join(row)
            raise UserError(
                f"{path.parent / line} needs the fields file_name and {column} with texts in them; it has: {has}."
            )
        captions[file] = spellable(caption, f"{path.parent / line}: the field {column!r}")
    return captions


def _hub(cfg: DictConfig) -> dict[str, Captioned]:
    tables = split_tables(read_hub(cfg.path), cfg.path)
    return {split: _table(table, name, cfg) for split, (name, table) in tables.items()}


def _table(table: Any, name: str, cfg: DictConfig) -> Captioned:
    import datasets

    columns = {"dataset.columns.image": cfg.columns.image}
    if cfg.prompt is None:
        columns["dataset.columns.text"] = cfg.columns.text
    for key, column in columns.items():
        check_column(key, column, table.column_names)
    if not isinstance(table.features[cfg.columns.image], datasets.Image):
        raise UserError(f"dataset.columns.image={cfg.columns.image} does not hold images.")
    images = encoded(rows(table.cast_column(cfg.columns.image, datasets.Image(decode=False))[cfg.columns.image]))
    captions = [cfg.prompt] * len(images) if cfg.prompt is not None else rows(table[cfg.columns.text])
    without = [n for n, caption in enumerate(captions) if not isinstance(caption, str) or not caption.strip()]
    if without:
        raise UserError(f"dataset.columns.text={cfg.columns.text}: {name} item {without[0]} has no caption.")
    return Captioned(images, captions, [f"{name} item {number}" for number in range(len(images))])


def prepare_captioned(
    splits: dict[str, Captioned],
    cfg: DictConfig,
    seed: int,
    size: int,
    tokenize: Callable[[list[str]], Tensor],
    encode: Callable[[Tensor], Tensor],
) -> DiffusionData:
    """Cut into train, validation and test, decode, crop to squares of `size` pixels, and encode to latents once.

    Splits that the data brings are used as they are; missing ones are cut from train at random by `cfg.split_seed`.
    `cfg.limit` training items are drawn with the run's seed.

    Raises:
        UserError: too few images to cut, or one that cannot be read.
    """
    splits = dict(splits)
    order = np.random.default_rng(cfg.split_seed).permutation(len(splits["train"].images))
    total = len(order)
    # a distance between distributions needs two test pictures
    for name, share, least in (("test", cfg.test_fraction, 2), ("validation", cfg.val_fraction, 1)):
        if name not in splits:
            count = max(least, round(share * total))
            splits[name], order = splits["train"].subset(order[:count]), order[count:]
    if len(order) < 1:
        raise UserError(f"{total} images are too few to cut into train, validation and test; at least 4 are needed.")
    train = splits["train"].subset(np.random.default_rng([seed, 0]).permutation(order)[: cfg.limit])
    splits = {
        "train": train,
        "validation": splits["validation"].subset(range(min(len(splits["validation"].images), cfg.eval_limit))),
        "test": splits["test"].subset(range(min(len(splits["test"].images), cfg.eval_limit))),
    }
    pictures = {name: torch.stack([_square(*pair, size) for pair in zip(part.images, part.names, strict=True)])
                for name, part in splits.items()}  # fmt: skip
    sets = {}
    for name, part in splits.items():
        latents = torch.cat([encode(chunk).cpu() for chunk in pictures[name].split(ENCODED_AT_ONCE)])
        sets[name] = TensorDataset(latents, tokenize(part.captions), torch.arange(len(latents)))
    some = min(cfg.train_eval_limit, len(train.images))
    return DiffusionData(
        train=sets["train"],
        train_eval=TensorDataset(*(column[:some] for column in sets["train"].tensors)),
        validation=sets["validation"],
        test=sets["test"],
        sizes={name: len(part.images) for name, part in splits.items()},
        fingerprint=_fingerprint(pictures, splits),
        pictures=pictures,
        captions={name: part.captions for name, part in splits.items()},
    )


def _square(image: Any, name: str, size: int) -> Tensor:
    """The middle square of an image, (3, size, size) in 0..1; what is transparent becomes white."""
    opened = open_image(image, name, "RGB", turned=True)
    square = ImageOps.fit(opened, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def _fingerprint(pictures: dict[str, Tensor], splits: dict[str, Captioned]) -> str:
    digest = hashlib.sha256()
    for name in sorted(pictures):
        digest.update(name.encode())
        digest.update((pictures[name] * 255).byte().numpy().tobytes())
        digest.update(repr(splits[name].captions).encode())
    return digest.hexdigest()[:16]
