"""Sources of images with captions: the bundled letters, a folder, or anything that `datasets.load_dataset` reads.

A folder holds images, and their captions in metadata.jsonl, .csv or .parquet (with the columns file_name and text, as in
Hugging Face's imagefolder), or in a text file beside each image (as for kohya's scripts); or all of its images share one
prompt, as in DreamBooth (`dataset.prompt`).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from foura.data.hub import encoded, image_records, read_hub, rows
from foura.data.images import IMAGE_FILES
from foura.data.listing import data_files
from foura.data.records import encodable
from foura.data.splits import check_column, existing, split_folders, split_tables
from foura.data.tables import RECORD_FILES, read_records
from foura.distributed import print_on_main
from foura.errors import UserError
from foura.files import read_any_text

LETTERS = {"train": 260, "validation": 104, "test": 208}  # images of each split
SEED = 1_000_000  # of the first split's letters, far from the seeds of the pretraining
METADATA = tuple(f"metadata{ending}" for ending in RECORD_FILES)
BESIDE = (".txt", ".caption")  # of a text file with the name of an image


@dataclass
class Captioned:
    """Images (uint8 arrays, paths or bytes of files), their captions, and their names in messages."""

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
    root = existing(cfg)
    if not root.is_dir():
        raise UserError(f"dataset.path={cfg.path} is not a folder.")
    folders = split_folders(root, cfg.splits, IMAGE_FILES)
    files = {split: data_files(folder, IMAGE_FILES) for split, folder in folders.items()}
    for split, found in files.items():
        if not found:
            raise UserError(f"{folders[split]} has no images ({', '.join(IMAGE_FILES)}).")
    if cfg.prompt is not None:
        captions = {file: cfg.prompt for found in files.values() for file in found}
    else:
        captions = _captions(root, [file for found in files.values() for file in found], cfg.columns.text)
    return {
        split: Captioned(
            [str(file) for file in found], [captions[file] for file in found], [str(file) for file in found]
        )
        for split, found in files.items()
    }


def _captions(root: Path, files: list[Path], column: str) -> dict[Path, str]:
    """{image: caption}, from the metadata files in the folder, and from the text files beside images.

    Raises:
        UserError: an image without a caption, or metadata that cannot be read.
    """
    captions: dict[Path, str] = {}
    absent: list[str] = []
    known = {Path(os.path.normpath(file)): file for file in files}
    for metadata in data_files(root, METADATA):
        for name, caption in _listed(metadata, column).items() if metadata.name.lower() in METADATA else ():
            file = Path(os.path.normpath(metadata.parent / name))
            if file in known:
                captions[known[file]] = caption
            elif not _is_file(file):
                absent.append(f"{metadata.parent.name}/{name}")
    if absent:
        print_on_main(f"note: {len(absent)} captions are of images that are not there (such as {absent[0]}).")
    captions = {file: captions.get(file) or _beside(file) for file in files}
    without = [file.relative_to(root).as_posix() for file, caption in captions.items() if not caption.strip()]
    if len(without) == len(files):
        raise UserError(
            f"{root} has no captions: add metadata.jsonl with a line "
            '{"file_name": "…", "text": "…"} for each image (or metadata.csv, or a text file beside each image), or set '
            'dataset.prompt="a photo of sks dog" for all of them.'
        )
    if without:
        raise UserError(
            f"{root} has captions for {len(files) - len(without)} of {len(files)} images; none for "
            f"{', '.join(without[:3])}{' …' if len(without) > 3 else ''}."
        )
    return captions


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _beside(image: Path) -> str:
    """The text of the file beside an image that has its name, on one line; "" where there is none."""
    found: Iterable[Path] = (image.with_suffix(ending) for ending in BESIDE)
    text = next((read_any_text(path) for path in found if path.is_file()), "")
    return " ".join(text.split("\n")).strip()


def _listed(path: Path, column: str) -> dict[str, str]:
    """{file name: caption} of a metadata file."""
    captions = {}
    for line, row in read_records(path)[0]:
        file, caption = row.get("file_name"), row.get(column)
        if not isinstance(file, str) or not isinstance(caption, str):
            has = ", ".join(map(str, row))
            raise UserError(
                f"{path.parent / line} needs the fields file_name and {column} with texts in them; it has: {has}."
            )
        captions[file.replace("\\", "/")] = encodable(caption, f"{path.parent / line}: the field {column!r}")
    return captions


def _hub(cfg: DictConfig) -> dict[str, Captioned]:
    tables = split_tables(read_hub(cfg), cfg.path, cfg.splits)
    return {split: _table(table, name, cfg) for split, (name, table) in tables.items()}


def _table(table: Any, name: str, cfg: DictConfig) -> Captioned:
    images = encoded(image_records(table, cfg.columns.image), cfg)
    names = [f"{name} item {number}" for number in range(len(images))]
    if cfg.prompt is not None:
        return Captioned(images, [cfg.prompt] * len(images), names)
    check_column("dataset.columns.text", cfg.columns.text, table.column_names)
    captions = rows(table, cfg.columns.text)
    without = [n for n, caption in enumerate(captions) if not isinstance(caption, str) or not caption.strip()]
    if without:
        raise UserError(f"dataset.columns.text={cfg.columns.text}: {name} item {without[0]} has no caption.")
    return Captioned(images, captions, names)
