"""Data of `datasets.load_dataset`: a hub id, a folder, or a file."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from foura.data.confined import folder_builder, image_path, load_file, load_folder, load_repository, undecoded
from foura.data.listing import data_files, is_data_path
from foura.data.splits import CHOOSE, check_column, existing, split_of
from foura.distributed import print_on_main
from foura.errors import UserError, reason
from foura.files import here

METADATA = "metadata"  # the name, without its ending, of a file with the captions or labels of images
# {how a file's name ends: (the library's name of its reader, options)}; any other is read as parquet
READERS: dict[str, tuple[str, dict[str, str]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}


def read_hub(cfg: DictConfig) -> Any:
    """{split: table} of a hub id, a folder or a file, as `datasets.load_dataset` reads it.

    Args:
        cfg: the dataset group, of which `path` and `config` are used.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    import datasets

    path = cfg.path
    if not path.strip():  # the library would take it for the current folder
        raise UserError("dataset.path is empty: name a hub id, a folder or a file.")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    local = existing(cfg) if looks_local or here(path) is not None else None
    datasets.disable_progress_bars()
    try:
        if local is None:
            return load_repository(path, cfg)
        return _folder(local, cfg) if local.is_dir() else _file(local, cfg)
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds; all of them say why the data cannot be read
        listed = re.search(r"pick one among the available configs: \[(.*?)\]", str(error).replace("\n", " "))
        if listed:
            names = listed[1].replace("'", "")
            raise UserError(
                f"dataset.path={path} has several configurations: choose one with dataset.config=NAME, of {names}."
            ) from None
        empty = re.search(r'Instruction "(.*?)" corresponds to no data', str(error))
        if empty:
            raise UserError(f"dataset.path={path}: the {empty[1]} split is empty.") from None
        what = f"dataset.path={path}" if cfg.config is None else f"dataset.path={path} dataset.config={cfg.config}"
        raise UserError(f"{what} could not be loaded: {reason(error)}") from error


def _file(path: Path, cfg: DictConfig) -> Any:
    name = path.name.lower().removesuffix(".gz")
    reader, options = next((READERS[end] for end in READERS if name.endswith(end)), ("parquet", {}))
    return load_file(path, cfg, reader, **options)


def _folder(folder: Path, cfg: DictConfig) -> Any:
    """A folder by the library's own rules, without what `is_data_path` leaves out, and with split names in any case."""
    files: Any = folder_builder(folder, cfg).config.data_files
    if not files:
        return load_folder(folder, cfg)
    root = folder.resolve()
    found = {str(split): [Path(file) for file in some] for split, some in files.items()}
    kept = {split: [file for file in some if is_data_path(_within(root, file))] for split, some in found.items()}
    described = any((folder / name).exists() for name in ("README.md", ".huggingface.yaml"))
    wanted = kept if described else _by_split(root, kept)
    if wanted == found:
        return load_folder(folder, cfg)
    named: Any = {split: [glob.escape(str(file)) for file in some] for split, some in wanted.items() if some}
    return load_folder(folder, cfg, data_files=named)


def _within(root: Path, file: Path) -> Path:
    return file.relative_to(root) if file.is_relative_to(root) else Path(file.name)


def _by_split(root: Path, found: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """The files of a folder by split, in any case; `found` is what the library found, which knows names in lower case alone.

    Raises:
        UserError: some files are in split folders and others are not.
    """
    endings = tuple({file.suffix.lower() for some in found.values() for file in some})
    every = data_files(root, endings)
    described = [file for file in every if file.stem == METADATA]
    for name_of, folders in ((_split_of_folders, True), (lambda file: split_of(file.stem), False)):
        splits: dict[str | None, list[Path]] = {}
        for file in every:
            if file not in described:
                splits.setdefault(name_of(_within(root, file)), []).append(file)
        if "train" not in splits or len(splits.keys() - {None}) == 1:
            continue
        if None in splits:
            names = ", ".join(split for split in splits if split)
            said = f"{root} has data in splits ({names}) and beside them (such as {splits[None][0]})"
            if folders:
                raise UserError(f"{said}: put all of it into train/, validation/ and test/, or {CHOOSE}.")
            print_on_main(f"note: {said}, which is not used.")
        made = {split: sorted(some + described) for split, some in splits.items() if split}
        plain = {split: set(some) - set(described) for split, some in made.items()}
        same = plain == {split: set(some) - set(described) for split, some in found.items()}
        return dict(found) if same else made
    return dict(found)


def _split_of_folders(file: Path) -> str | None:
    """The split that the first of a file's folders stands for that stands for one."""
    return next((split for split in map(split_of, file.parts[:-1]) if split), None)


def rows(table: Any, column: str | None = None) -> list[Any]:
    """All rows of a table of `datasets`, or all values of a column, as they are stored.

    Raises:
        UserError: one that cannot be decoded.
    """
    try:
        if column is None:
            return list(undecoded(table))
        return list(undecoded(table.select_columns([column]))[column])
    except Exception as error:  # each kind of column has a decoder, which raises its own kinds
        raise UserError(
            f"the data has an item that cannot be read ({reason(error)}); repair it or take it out."
        ) from error


def image_records(table: Any, column: str) -> list[Any]:
    """{"bytes": …, "path": …} of each image in the column that dataset.columns.image names; nothing is decoded.

    Raises:
        UserError: there is no such column, or it does not hold images.
    """
    import datasets

    check_column("dataset.columns.image", column, table.column_names)
    if not isinstance(table.features[column], datasets.Image):
        raise UserError(f"dataset.columns.image={column} holds {table.features[column]}, not images.")
    return rows(table, column)


def encoded(records: list[Any], cfg: DictConfig) -> list[Any]:
    """The bytes or the path of each of the `image_records`.

    Args:
        cfg: the dataset group.

    Raises:
        UserError: an item without an image, or one that is somewhere else than the data.
    """
    images = [
        record
        and (record["bytes"] if record["bytes"] is not None else record["path"] and image_path(record["path"], cfg))
        for record in records
    ]
    if not all(images):
        raise UserError(f"item {[bool(image) for image in images].index(False)} of the data has no image; take it out.")
    return images
