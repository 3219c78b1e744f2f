"""Sources of text: the bundled source code, text files, JSON lines, or anything that `datasets.load_dataset` reads."""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from foura.data.records import hub_records, json_records
from foura.data.splits import existing, split_folders
from foura.errors import UserError
from foura.families.language.formats import FORMATS, Example
from foura.files import read_text

TEXT_FILES: tuple[str, ...] = (".txt", ".md", ".rst", ".py", ".text", ".tex", ".csv", ".tsv", ".html", ".xml")
TEXT_FILES += (".c", ".h", ".js", ".java")
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
        return TextSource({"train": list(_stdlib())} if cfg.source == "stdlib" else _files(existing(cfg.path)), format)
    records = json_records(cfg.path) if cfg.source == "jsonl" else hub_records(cfg.path)
    splits = {}
    for split, named in records.splits.items():
        splits[split] = [FORMATS[format](row, name, cfg) for name, row in named]
        if not splits[split]:
            raise UserError(f"dataset.path={cfg.path}: the {split} split is empty.")
    return TextSource(splits, format)


def _stdlib() -> Iterator[Example]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    for module in STDLIB:
        path = folder / f"{module}.py"
        if path.is_file():  # in some versions of Python a module is a package
            yield Example(f"{module}.py", read_text(path))


def _files(path: Path) -> dict[str, list[Example]]:
    """One file or a folder of them, with the folders train, validation and test where the user has them."""
    if path.is_file():
        return {"train": [Example(path.name, read_text(path))]}
    splits = {}
    for split, folder in split_folders(path).items():
        found = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix.lower() in TEXT_FILES)
        if not found:
            raise UserError(f"{folder} has no text files ({', '.join(TEXT_FILES)}).")
        splits[split] = [Example(str(file.relative_to(folder)), read_text(file)) for file in found]
    return splits
