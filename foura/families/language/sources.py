"""Sources of text: the bundled source code, text files, JSON lines, or anything that `datasets.load_dataset` reads."""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from foura.data.listing import data_files
from foura.data.records import filled, labelled_splits, open_records, readable, say_left_out
from foura.data.splits import (
    CHOOSE,
    chosen,
    existing,
    inside,
    refuse_splits_of_a_file,
    split_files,
    split_folders,
    split_of,
    stem,
)
from foura.errors import UserError
from foura.families.language.formats import FORMATS, NEEDED, Example
from foura.files import read_any_text, read_text

TEXT_FILES: tuple[str, ...] = (".txt", ".md", ".rst", ".py", ".text", ".tex", ".csv", ".tsv", ".html", ".xml")
TEXT_FILES += (".c", ".h", ".js", ".java")
TEXT_FILES += tuple(f"{ending}.gz" for ending in TEXT_FILES)
ABOUT = ("readme", "license", "licence", "copying", "changelog", "notice")  # files about the data, beside its splits
# modules of the standard library that most programmers have met, by many authors
STDLIB: tuple[str, ...] = ("argparse", "ast", "bisect", "calendar", "cmd", "code", "contextlib", "copy", "csv")
STDLIB += ("dataclasses", "datetime", "difflib", "enum", "fnmatch", "fractions", "functools", "getopt", "glob", "gzip")
STDLIB += ("heapq", "inspect", "io", "linecache", "locale", "mimetypes", "netrc", "operator", "optparse", "pathlib")
STDLIB += ("pdb", "pickle", "platform", "pprint", "queue", "random", "shlex", "shutil", "socket", "ssl", "statistics")
STDLIB += ("string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback")
STDLIB += ("types", "typing", "uuid")


@dataclass
class TextSource:
    """{"train": …, and "validation" and "test" where the data brings them}, and the format of the records."""

    splits: dict[str, list[Example]]
    format: str


def open_text(cfg: DictConfig, format: str) -> TextSource:
    """The data that `cfg` (the dataset group) names.

    Args:
        format: a key of `FORMATS`.

    Raises:
        UserError: files, fields or splits that are not there, or text that is empty or not UTF-8.
    """
    if cfg.source in ("stdlib", "text"):
        if format != "text":
            raise UserError(
                f"dataset.format={format} needs records with fields: use dataset=jsonl or dataset=hf, not "
                f"dataset={cfg.name}."
            )
        return TextSource({"train": list(_stdlib())} if cfg.source == "stdlib" else _files(cfg), format)
    found = open_records(cfg).splits
    if format == "verbalizer":
        found = labelled_splits(found, cfg.columns.label)
    splits = {}
    for split, named in found.items():
        kept = filled(named, tuple(cfg.columns[column] for column in NEEDED.get(format, ())), split)
        splits[split] = [FORMATS[format](row, name, cfg) for name, row in kept]
    return TextSource(splits, format)


def _stdlib() -> Iterator[Example]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    for module in STDLIB:
        path = folder / f"{module}.py"
        if path.is_file():  # in some versions of Python a module is a package
            yield Example(f"{module}.py", read_text(path))


def _files(cfg: DictConfig) -> dict[str, list[Example]]:
    """One file or a folder of them, with the folders or files train, validation and test where the user has them."""
    splits = {}
    for split, (folder, files) in _text_files(existing(cfg), cfg).items():
        if not files:
            raise UserError(f"{folder} has no text files ({', '.join(TEXT_FILES)}).")
        texts: dict[Path, str] = {}

        def read(file: Path, texts: dict[Path, str] = texts) -> None:
            texts[file] = read_any_text(file)

        readable(files, read, split, cfg.unreadable)
        kept = {file: text for file, text in texts.items() if text.strip()}
        say_left_out(len(texts) - len(kept), len(texts), split, "empty")
        splits[split] = [Example(str(file.relative_to(folder)), text) for file, text in kept.items()]
    return splits


def _text_files(path: Path, cfg: DictConfig) -> dict[str, tuple[Path, list[Path]]]:
    """{split: (folder, files in it)}."""
    if path.is_file():
        refuse_splits_of_a_file(path, cfg.splits)
        return {"train": (path.parent, [path])}
    if cfg.splits:
        places = {split: inside(path, name) for split, name in chosen(cfg.splits).items()}
        return {
            split: (place, data_files(place, TEXT_FILES)) if place.is_dir() else (place.parent, [place])
            for split, place in places.items()
        }
    folders = split_folders(path, {}, TEXT_FILES)
    if list(folders.values()) != [path]:
        return {split: (folder, data_files(folder, TEXT_FILES)) for split, folder in folders.items()}
    return _by_name(path)


def _by_name(folder: Path) -> dict[str, tuple[Path, list[Path]]]:
    """The files of a folder without split folders: train.txt and test.txt are splits, other names are documents."""
    files = [file for file in data_files(folder, TEXT_FILES) if not file.name.lower().startswith(ABOUT)]
    meant = {split_of(stem(file.name, TEXT_FILES)) for file in files if file.parent == folder} - {None}
    if "train" not in meant or len(meant) == 1:
        return {"train": (folder, data_files(folder, TEXT_FILES))}
    splits = split_files(folder, {}, TEXT_FILES)
    others = [file for file in files if not any(file in found for found in splits.values())]
    if others:
        names = ", ".join(file.name for found in splits.values() for file in found)
        raise UserError(
            f"{folder} has files that are named like splits ({names}) and others (such as {others[0].name}): {CHOOSE}; "
            "dataset.splits={train: .} takes all of it as training data."
        )
    return {split: (folder, found) for split, found in splits.items()}
