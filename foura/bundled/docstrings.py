"""The target domain of the bundled encoder: to which library does this docstring belong? (no download)

The texts are descriptions in prose from the source files of installed libraries, read with `ast` and never imported.
The names of the libraries are removed from them, and so are code, markup and everything from the first section
("Parameters", "Args:", …) on, whose layout alone would give a library away.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

LIBRARIES = ("diffusers", "matplotlib", "mlflow", "pandas", "scipy", "sklearn", "torch", "transformers")
PER_LIBRARY = 300
PER_FILE = 6  # docstrings of one file resemble each other
LARGEST = 100_000  # bytes of a file: it takes long to parse for so few
SHORTEST, LONGEST = 100, 400  # characters of a description
ALIKE = 40  # letters: of descriptions that begin with the same ones, which copied code has, the first is taken

# tests, and code that libraries carry from elsewhere
_NOT_THEIRS = {"tests", "test", "testing", "externals", "_vendor", "vendor", "array_api_compat", "array_api_extra"}
_NOT_THEIRS |= {"site-packages", "dist-packages"}  # which are in the standard library's folder
_NAMES = re.compile(
    r"(?:hugging ?face|scikit-learn|scikit|pytorch|pyplot|mpl_toolkits|databricks|" + "|".join(LIBRARIES) + r")\.?"
    r"|\b(?:np|pd|plt|mpl|numpy)\.|\b(?:HF|mpl)\b",
    re.IGNORECASE,
)
_SECTIONS = (
    "args? arguments attributes examples? inputs? keyword\\W+arg\\w+ methods notes? other\\W+parameters outputs? parameters?"
    " params properties raises references returns? see\\W+also shape usage warnings? yields?"
)
_SECTION = re.compile(
    rf"^\s*(?:(?:{'|'.join(_SECTIONS.split())})\s*:*\s*$"  # a heading of any style
    r"|[-=~^]{3,}\s*$|>>>|```|@|\.\.\ |:(?:param|returns?|type|rtype|raises?)\b)",  # underlining, code, fields
    re.MULTILINE | re.IGNORECASE,
)
_MARKUP = (
    (re.compile(r":[\w:]+:`[~!]?([^`<]*)(?:<[^`]*>)?`"), r"\1"),  # :class:`~a.b`
    (re.compile(r"https?://\S+"), ""),
    (re.compile(r"\[[`~]*([^\]`]*)`?\](?:\([^)]*\))?"), r"\1"),  # [`~a.b`] and [text](link)
    (re.compile(r"[`*#|]"), ""),
)


class Docstrings(NamedTuple):
    """A balanced text classification task of n items; any beginning of it is balanced too.

    Attributes:
        texts: n descriptions of `SHORTEST` to `LONGEST` characters, no two of which begin alike.
        labels: n indices into `class_names`.
        class_names: `LIBRARIES`.
        groups: n names of the files that the texts are from, such as "torch/nn/functional.py". Docstrings of one file
            resemble each other: items of one group belong on the same side of a split.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    groups: tuple[str, ...]


@functools.cache
def load_docstrings() -> Docstrings:
    """Read the task from the installed libraries; the same versions of them give the same items in the same order.

    There are `PER_LIBRARY` items per class, or as many as the library with the fewest has.

    Raises:
        ImportError: one of the libraries is not installed.
    """
    known: set[str] = set()
    found = [list(islice(_descriptions(library, known), PER_LIBRARY)) for library in LIBRARIES]
    items = [(text, label, file) for row in zip(*found, strict=False) for label, (text, file) in enumerate(row)]
    return Docstrings(
        texts=tuple(text for text, _, _ in items),
        labels=tuple(label for _, label, _ in items),
        class_names=LIBRARIES,
        groups=tuple(file for _, _, file in items),
    )


def _descriptions(library: str, known: set[str]) -> Iterator[tuple[str, str]]:
    """Pairs of (description, file's name) from files all over the library; `known` gains how each of them begins."""
    files = {name: path for name, path in source_files(library).items() if path.stat().st_size <= LARGEST}
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
        taken = 0
        for text in map(description, read_docstrings(files[name])):
            beginning = re.sub(r"[^a-z]", "", text.lower())[:ALIKE]
            if len(text) >= SHORTEST and beginning not in known:
                known.add(beginning)
                yield text, name
                taken += 1
                if taken == PER_FILE:
                    break


def source_files(package: str) -> dict[str, Path]:
    """`python_files` of an installed package: the name of one is such as "torch/nn/init.py".

    Raises:
        ImportError: the package is not installed.
    """
    spec = find_spec(package)  # of a top-level name: imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed: its docstrings are needed", name=package)
    return python_files(Path(next(iter(spec.submodule_search_locations))))


def python_files(folder: Path) -> dict[str, Path]:
    """{path from the folder's parent: path} of the Python files below a folder, sorted, without tests and vendored code."""
    files = {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*.py")}
    return {name: files[name] for name in sorted(files) if _NOT_THEIRS.isdisjoint(name.split("/")[1:])}


def read_docstrings(file: Path) -> Iterator[str]:
    """The docstrings of a module and of its classes, functions and methods, in order.

    A file that is not valid Python, as templates of code are not, has none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return iter(())
    return _docstrings(tree)


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text:
        yield text
    for child in node.body if isinstance(node, (ast.Module, ast.ClassDef)) else []:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child)


def description(docstring: str) -> str:
    """The beginning of a docstring as plain prose without the names of libraries, at most `LONGEST` characters."""
    section = _SECTION.search(docstring)
    text = plain(_NAMES.sub("", plain(docstring[: section.start()] if section else docstring)))
    return text if len(text) <= LONGEST else text[: LONGEST + 1].rpartition(" ")[0]


def plain(text: str) -> str:
    """The text without markup and links, on one line."""
    for pattern, kept in _MARKUP:
        text = pattern.sub(kept, text)
    return " ".join(text.split())
