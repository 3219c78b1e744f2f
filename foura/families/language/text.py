"""Text for language models: the embedded source code, files, JSON lines, or anything that `datasets.load_dataset` reads.

A source gives `Example`s; four formats say what of a record becomes one:
    text         a document; documents are packed into blocks of `block_size` tokens
    completion   prompt and completion; the loss is on the completion alone
    commonsense  LLM-Adapters' records (instruction, output, answer): the choices are what its "Answer format:" lists
    verbalizer   labelled sentences (GLUE): a template makes the prompt, and each label has a word
The last two are multiple choice: trained on the gold answer, judged by which choice is the likeliest.
"""

import string
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from foura.data.records import hub_records, json_records, spellable, text_field
from foura.data.splits import existing, split_folders
from foura.errors import UserError
from foura.files import read_text

TEXT_FILES = (
    ".txt",
    ".md",
    ".rst",
    ".py",
    ".text",
    ".tex",
    ".csv",
    ".tsv",
    ".html",
    ".xml",
    ".c",
    ".h",
    ".js",
    ".java",
)
CHOICE_FORMATS = ("commonsense", "verbalizer")
MOST_CHOICES = 100  # of a question: each is a text to read
# of the standard library: modules that most programmers have met, written by many hands
STDLIB: tuple[str, ...] = (
    "argparse",
    "ast",
    "bisect",
    "calendar",
    "cmd",
    "code",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
)
STDLIB += ("difflib", "enum", "fnmatch", "fractions", "functools", "getopt", "glob", "gzip", "heapq", "inspect", "io")
STDLIB += ("linecache", "locale", "mimetypes", "netrc", "operator", "optparse", "pathlib", "pdb", "pickle", "platform")
STDLIB += ("pprint", "queue", "random", "shlex", "shutil", "socket", "ssl", "statistics", "string", "subprocess")
STDLIB += ("tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback", "types", "typing", "uuid")


@dataclass(frozen=True)
class Example:
    """A text to learn, after a prompt that is given; with `choices`, the text is choices[gold]."""

    name: str  # what a message calls it
    text: str
    prompt: str = ""
    choices: tuple[str, ...] = ()
    gold: int = 0


@dataclass
class TextSource:
    """What was found: {"train": …, and "validation" and "test" where the data brings them}."""

    splits: dict[str, list[Example]]
    format: str


def open_text(cfg: DictConfig, format: str) -> TextSource:
    """The data that `cfg` (the dataset group) names.

    Args:
        format: one of text, completion, commonsense, verbalizer.

    Raises:
        UserError: files, fields or splits that are not there, or text that is empty or not UTF-8.
    """
    if cfg.source == "stdlib":
        return TextSource({"train": list(_stdlib())}, "text")
    if cfg.source == "text":
        return TextSource(_files(existing(cfg.path)), "text")
    records = json_records(cfg.path) if cfg.source == "jsonl" else hub_records(cfg.path)
    make = {"text": _document, "completion": _completion, "commonsense": _commonsense, "verbalizer": _verbalizer}[
        format
    ]
    splits = {}
    for split, named in records.splits.items():
        splits[split] = [make(row, name, cfg) for name, row in named]
        if not splits[split]:
            raise UserError(f"dataset.path={cfg.path}: the {split} split is empty.")
    return TextSource(splits, format)


def _stdlib() -> Iterator[Example]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    for module in STDLIB:
        path = folder / f"{module}.py"
        if path.is_file():  # some Pythons keep a module as a package
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


def _document(row: dict[str, Any], name: str, cfg: DictConfig) -> Example:
    text = text_field(row, name, "dataset.columns.text", cfg.columns.text)
    if not text.strip():
        raise UserError(f"{name}: the field {cfg.columns.text!r} is empty.")
    return Example(name, text)


def _completion(row: dict[str, Any], name: str, cfg: DictConfig) -> Example:
    prompt = text_field(row, name, "dataset.columns.prompt", cfg.columns.prompt)
    text = text_field(row, name, "dataset.columns.completion", cfg.columns.completion)
    if not text.strip():
        raise UserError(f"{name}: the field {cfg.columns.completion!r} is empty.")
    return Example(name, text, prompt)


def _commonsense(row: dict[str, Any], name: str, cfg: DictConfig) -> Example:
    instruction = text_field(row, name, "the question", "instruction")
    output, answer = (
        text_field(row, name, "what is learnt", "output"),
        text_field(row, name, "the gold choice", "answer"),
    )
    _, asked, listed = instruction.rpartition("Answer format:")
    names = [choice.strip() for choice in listed.split("/", MOST_CHOICES)]
    if not asked or not all(names):
        raise UserError(f"{name}: the instruction does not end in 'Answer format: choice/choice/…'.")
    if not 2 <= len(set(names)) == len(names) <= MOST_CHOICES:
        raise UserError(
            f"{name}: there must be 2 to {MOST_CHOICES} choices, each another; it lists {', '.join(names)}."
        )
    if answer not in names or answer not in output:
        raise UserError(
            f"{name}: the answer {answer!r} is not among the choices {', '.join(names)}, or not in its output."
        )
    head, _, tail = output.rpartition(answer)
    choices = tuple(f"{head}{choice}{tail}" for choice in names)
    return Example(name, output, f"{instruction}\n\n", choices, names.index(answer))


def _verbalizer(row: dict[str, Any], name: str, cfg: DictConfig) -> Example:
    if cfg.template is None or not cfg.verbalizer:
        raise UserError(
            "dataset.format=verbalizer needs dataset.template='{sentence} It was' and "
            'dataset.verbalizer=\'[" bad"," good"]\': a prompt of the record\'s fields, and a word for each label.'
        )
    prompt = "".join(
        said + (text_field(row, name, "dataset.template", field) if field else "")
        for said, field in _pieces(cfg.template)
    )
    label = row.get(cfg.columns.label)
    words = tuple(spellable(word, "dataset.verbalizer") for word in cfg.verbalizer)
    if len(words) < 2 or not all(words):
        raise UserError("dataset.verbalizer needs a word for each of at least two labels, and none of them empty.")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(words):
        raise UserError(
            f"{name}: dataset.columns.label={cfg.columns.label} is {label!r}, and dataset.verbalizer has words for 0 to "
            f"{len(words) - 1}."
        )
    return Example(name, words[label], prompt, words, label)


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """[(what stands before a field, the field), …] of a template; fields are put in as they are, never formatted.

    Raises:
        UserError: braces that do not name a field, or ask for more than its text.
    """
    try:
        parsed = list(string.Formatter().parse(spellable(template, "dataset.template")))
    except ValueError as error:
        raise UserError(
            f"dataset.template={template} cannot be read ({error}); a brace itself is written twice."
        ) from None
    for _, field, spec, conversion in parsed:
        if field is not None and (not field or spec or conversion):
            raise UserError(
                f"dataset.template={template}: braces hold the name of a field and nothing else, as {{sentence}}."
            )
    return [(said, field) for said, field, _, _ in parsed]


def cut(source: TextSource, cfg: DictConfig) -> dict[str, list[Example]]:
    """Train, validation and test. Splits that the data brings are used as they are; missing ones are cut from train.

    Examples go to one side whole, at random by `cfg.split_seed`; fewer than ten documents are each cut into consecutive
    parts instead. The same for every run, whatever its seed.
    """
    splits = {name: list(examples) for name, examples in source.splits.items()}
    shares = {"validation": cfg.val_fraction, "test": cfg.test_fraction}
    missing = {name: share for name, share in shares.items() if name not in splits}
    if sum(missing.values()) >= 1.0:
        raise UserError("dataset.val_fraction and dataset.test_fraction together must leave text to train on.")
    if missing and source.format == "text" and len(splits["train"]) < 10:
        whole, splits["train"] = splits["train"], []
        splits |= {name: [] for name in missing}
        for example in whole:
            start = 0
            parts = {"train": 1.0 - sum(missing.values()), **missing}
            for number, (name, share) in enumerate(parts.items(), 1):
                end = len(example.text) if number == len(parts) else start + round(share * len(example.text))
                splits[name].append(replace(example, text=example.text[start:end]))
                start = end
        return splits
    order = np.random.default_rng(cfg.split_seed).permutation(len(splits["train"]))
    total, pool = len(order), [splits["train"][index] for index in order]
    for name, share in missing.items():
        count = max(1, round(share * total))
        splits[name], pool = pool[:count], pool[count:]
    if not pool:
        raise UserError(f"{total} examples are too few to cut into train, validation and test.")
    splits["train"] = pool
    return splits


def mislabel(examples: list[Example], share: float, seed: int) -> list[Example]:
    """Multiple choice with a share of the gold answers replaced by another choice, drawn with the seed."""
    generator = np.random.default_rng([seed, 1])
    wrong = set(generator.permutation(len(examples))[: round(share * len(examples))].tolist())
    changed = []
    for index, example in enumerate(examples):
        if index in wrong:
            gold = (example.gold + 1 + int(generator.integers(len(example.choices) - 1))) % len(example.choices)
            example = replace(example, gold=gold, text=example.choices[gold])
        changed.append(example)
    return changed
