"""Records with named fields, by split: JSON lines, or anything that `datasets.load_dataset` reads."""

from dataclasses import dataclass, field
from typing import Any

from foura.data.hub import read_hub, rows
from foura.data.splits import existing, split_files, split_tables
from foura.errors import UserError
from foura.files import json_lines

Named = list[tuple[str, dict[str, Any]]]  # [(what a message calls the record, record), …]


@dataclass
class Records:
    """{split: records} and, for columns that declare them, {column: class names}."""

    splits: dict[str, Named]
    class_names: dict[str, list[str]] = field(default_factory=dict)


def json_records(path: str) -> Records:
    """A file of JSON lines, or a folder with train.jsonl and perhaps validation.jsonl and test.jsonl.

    Raises:
        UserError: nothing is there, or a line is not a JSON object.
    """
    return Records({split: json_lines(file) for split, file in split_files(existing(path), ".jsonl").items()})


def hub_records(path: str) -> Records:
    """The splits of a hub id, a folder or a parquet file.

    Raises:
        UserError: it cannot be read, or has no training split.
    """
    import datasets

    splits: dict[str, Named] = {}
    classes: dict[str, list[str]] = {}
    for split, (name, table) in split_tables(read_hub(path), path).items():
        splits[split] = [(f"{name} item {number}", row) for number, row in enumerate(rows(table))]
        features = table.features or {}
        classes |= {key: list(kind.names) for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    return Records(splits, classes)


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
