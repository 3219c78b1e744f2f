"""Sources of images with captions: the bundled letters, a folder, or anything that `datasets.load_dataset` reads.

A folder holds images, and their captions in metadata.jsonl (lines {"file_name": …, "text": …}, as in Hugging Face's
imagefolder); or all of its images share one prompt, as in DreamBooth (`dataset.prompt`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from foura.data.hub import encoded, image_records, read_hub, rows
from foura.data.images import image_files
from foura.data.records import encodable
from foura.data.splits import check_column, existing, split_folders, split_tables
from foura.errors import UserError
from foura.files import json_lines

LETTERS = {"train": 260, "validation": 104, "test": 208}  # images of each split
SEED = 1_000_000  # of the first split's letters, far from the seeds of the pretraining


@dataclass
class Captioned:
    """Images (uint8 arrays, paths, bytes of files or Pillow images), their captions, and their names in messages."""

    images: list[Any]
    captions: list[str]
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Any) -> "Captioned":
        order = [int(index) for index in indices]
        return Captioned(*([column[i] for i in order] for column in (self.images, self.captions, self.names)))


def open_captioned(cfg: DictConfig) -> dict[str, Captioned]:
    """{"train": …, and "validation" and "test" where the data brings them} of `cfg` (the dataset group).

    Raises:
        UserError: a path, column or caption that is not there.
    """
    if cfg.source == "letters":
        return _letters(cfg)
    return _folders(cfg) if cfg.source == "imagefolder" else _hub(cfg)


def _letters(cfg: DictConfig) -> dict[str, Captioned]:
    from foura.bundled.letters import render_letters

    splits = {}
    for number, (name, count) in enumerate(LETTERS.items()):
        images, captions = render_letters(count, SEED + number, cfg.style)
        splits[name] = Captioned(list(images), captions, [f"{name} letter {index}" for index in range(count)])
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
            '{"file_name": "…", "text": "…"} for each image, or set dataset.prompt="a photo of sks dog" for all of them.'
        )
    without = [name for name in names if not captions.get(name, "").strip()]
    if without:
        raise UserError(
            f"{listed} has captions for {len(names) - len(without)} of {len(names)} images; none for "
            f"{', '.join(without[:3])}{' …' if len(without) > 3 else ''}."
        )
    return Captioned([str(file) for file in files], [captions[name] for name in names], [str(file) for file in files])


def _listed(path: Path, column: str) -> dict[str, str]:
    """{file name: caption} of a metadata.jsonl."""
    captions = {}
    for line, row in json_lines(path):
        file, caption = row.get("file_name"), row.get(column)
        if not isinstance(file, str) or not isinstance(caption, str):
            has = ", ".join(row)
            raise UserError(
                f"{path.parent / line} needs the fields file_name and {column} with texts in them; it has: {has}."
            )
        captions[file] = encodable(caption, f"{path.parent / line}: the field {column!r}")
    return captions


def _hub(cfg: DictConfig) -> dict[str, Captioned]:
    tables = split_tables(read_hub(cfg.path), cfg.path)
    return {split: _table(table, name, cfg) for split, (name, table) in tables.items()}


def _table(table: Any, name: str, cfg: DictConfig) -> Captioned:
    images = encoded(image_records(table, cfg.columns.image))
    names = [f"{name} item {number}" for number in range(len(images))]
    if cfg.prompt is not None:
        return Captioned(images, [cfg.prompt] * len(images), names)
    check_column("dataset.columns.text", cfg.columns.text, table.column_names)
    captions = rows(table.select_columns([cfg.columns.text])[cfg.columns.text])
    without = [n for n, caption in enumerate(captions) if not isinstance(caption, str) or not caption.strip()]
    if without:
        raise UserError(f"dataset.columns.text={cfg.columns.text}: {name} item {without[0]} has no caption.")
    return Captioned(images, captions, names)
