"""Records with named fields, by split: files of them, or anything that `datasets.load_dataset` reads."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import DictConfig

from foura.data.hub import read_hub, rows
from foura.data.splits import existing, refuse_empty, split_files, split_tables
from foura.data.tables import RECORD_FILES, Named, read_records
from foura.distributed import print_on_main
from foura.errors import UserError

Made = TypeVar("Made")
UNLABELLED = -1  # GLUE's label of its hidden test data


@dataclass
class Records:
    """{split: records} and, for columns that declare them, {column: class names}."""

    splits: dict[str, Named]
    class_names: dict[str, list[str]] = field(default_factory=dict)


def open_records(cfg: DictConfig) -> Records:
    """The records that `cfg` (the dataset group) names, of the source "jsonl" (files) or "hf" (`datasets.load_dataset`).

    Raises:
        UserError: nothing is there, it cannot be read, has no training split, or an empty one.
    """
    return _files(cfg) if cfg.source == "jsonl" else _hub(cfg)


def _files(cfg: DictConfig) -> Records:
    records = Records({})
    for split, paths in split_files(existing(cfg), cfg.splits, RECORD_FILES).items():
        records.splits[split] = []
        for path in paths:
            named, classes = read_records(path, cfg.columns.label, cfg.any_size)
            records.splits[split] += named
            records.class_names |= classes
        refuse_empty(records.splits[split], split, cfg.path)
    return records


def _hub(cfg: DictConfig) -> Records:
    import datasets

    records = Records({})
    for split, (name, table) in split_tables(read_hub(cfg), cfg.path, cfg.splits).items():
        records.splits[split] = [(f"{name} item {number}", row) for number, row in enumerate(rows(table))]
        kinds = (table.features or {}).items()
        records.class_names |= {key: list(kind.names) for key, kind in kinds if isinstance(kind, datasets.ClassLabel)}
    return records


def labelled_splits(splits: dict[str, Named], column: str) -> dict[str, Named]:
    """The splits without those of which no item has a label, as in GLUE's test data; which ones, is said.

    Raises:
        UserError: the training data is one of them.
    """
    without = [split for split, named in splits.items() if named and all(_unlabelled(row, column) for _, row in named)]
    if "train" in without:
        has = ", ".join(map(str, splits["train"][0][1]))
        raise UserError(
            f"the train split has no labels in the column {column!r} (dataset.columns.label={column}); it has: {has}."
        )
    say_unlabelled(without)
    return {split: named for split, named in splits.items() if split not in without}


def say_unlabelled(splits: list[str]) -> None:
    """Say which splits are left out for want of labels."""
    for split in splits:
        print_on_main(
            f"note: the {split} split has no labels: it is left out, and another is cut from the train split."
        )


def _unlabelled(row: dict[str, Any], column: str) -> bool:
    return blank(row.get(column)) or row[column] == UNLABELLED


def refuse_unlabelled(names: Sequence[str], total: int, split: str, column: str) -> None:
    """Refuse items without a label among others that have one: "nothing" would be a class of its own.

    Args:
        names: what a message calls those without one. total: the number of items in the split.

    Raises:
        UserError: there are some.
    """
    if names:
        raise UserError(
            f"dataset.columns.label={column}: {len(names)} of {total} items of the {split} split have no label (the first is "
            f"{names[0]}): give them one, or take them out."
        )


def filled(
    named: Iterable[tuple[str, dict[str, Any]]], columns: tuple[str | None, ...], split: str
) -> list[tuple[str, dict[str, Any]]]:
    """The records in which none of these columns is blank; how many are left out, is said.

    A column that a record lacks is not blank: `text_field` refuses it.

    Raises:
        UserError: all of them are.
    """
    given = list(named)
    kept = [(name, row) for name, row in given if not any(column in row and blank(row[column]) for column in columns)]
    say_left_out(len(given) - len(kept), len(given), split, "without text")
    return kept


def blank(value: Any) -> bool:
    """True for an empty text, one of spaces alone, or a missing value."""
    return value is None or (isinstance(value, str) and not value.strip())


def say_left_out(count: int, total: int, split: str, why: str) -> None:
    """Say how many of a split's items are left out.

    Raises:
        UserError: all of them are.
    """
    if total and count == total:
        raise UserError(f"the {split} split is empty: all of its {total} items are {why}.")
    if count:
        print_on_main(f"note: {count} of {total} items of the {split} split are {why} and left out.")


def readable(items: Iterable[Made], read: Callable[[Made], object], split: str, wanted: str) -> list[Made]:
    """The items that can be read.

    Args:
        read: raises UserError for an item that cannot be read.
        wanted: `dataset.unreadable`: "refuse", or "drop" to leave them out and say how many.

    Raises:
        UserError: an item cannot be read and is refused, or none can.
    """
    given, kept, said = list(items), [], ""
    for item in given:
        try:
            read(item)
            kept.append(item)
        except UserError as error:
            if wanted == "refuse":
                raise
            said = said or f"unreadable ({error})"
    say_left_out(len(given) - len(kept), len(given), split, said)
    return kept


def text_field(row: dict[str, Any], name: str, key: str, column: str | None) -> str:
    """The text in a column of a record.

    Args:
        name: what a message calls the record. key: the config key that names the column.

    Raises:
        UserError: there is no such column, or it does not hold text.
    """
    if column is None or column not in row:
        raise UserError(f"{name} has no field {column!r} ({key}={column}); it has: {', '.join(map(str, row))}.")
    value = row[column]
    if not isinstance(value, str):
        raise UserError(f"{name}: the field {column!r} holds {type(value).__name__}, not text.")
    return encodable(value, f"{name}: the field {column!r}")


def encodable(text: str, name: str) -> str:
    """The text, if it can be encoded: JSON can hold half of a surrogate pair, which no tokenizer takes.

    Raises:
        UserError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} holds half a character (at {error.start}), which is not text.") from None
    return text
