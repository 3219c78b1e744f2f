"""Records in files: JSON lines, JSON arrays, CSV, TSV and parquet, the text ones also packed by gzip."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from foura.data.unpacked import check_unpacked
from foura.errors import UserError, reason
from foura.files import an_object, parse_any_json, parse_json, read_text, regular

Named = list[tuple[str, dict[str, Any]]]  # [(what a message calls the record, record), …]
PACKED = ".gz"
RECORD_FILES: tuple[str, ...] = (".jsonl", ".json", ".ndjson", ".csv", ".tsv")
RECORD_FILES += (*(f"{end}{PACKED}" for end in RECORD_FILES), ".parquet")
LONGEST_CELL = 2**27  # characters; the csv module's own limit is 2**17, less than a document


def read_records(path: Path, numbers: str | None = None, any_size: bool = False) -> tuple[Named, dict[str, list[str]]]:
    """(the records of a file, {column: class names} of the columns that declare them).

    The file's name tells the format: .csv, .tsv, .parquet; any other holds JSON, as lines or as one array.

    Args:
        numbers: the column of .csv and .tsv files that may hold numbers; all others hold texts.
        any_size: `dataset.any_size`: also a table that repeats its values so often that they would fill the memory.

    Raises:
        UserError: it cannot be read, or does not hold records.
    """
    name = path.name.lower().removesuffix(PACKED)
    if name.endswith(".parquet"):
        if not any_size:
            check_unpacked(regular(path))
        return _parquet(path)
    if name.endswith((".csv", ".tsv")):
        return _separated(path, name.endswith(".tsv"), numbers), {}
    return _json(path), {}


def _json(path: Path) -> Named:
    text = read_text(path)
    if text.lstrip()[0] == "[":
        return _items(parse_any_json(text, str(path)), path)
    try:
        return json_lines(text, path)
    except UserError:
        lists = _lists(text)
        if len(lists) != 1:
            raise
        return _items(lists[0], path)


def json_lines(text: str, path: Path) -> Named:
    """The record in each line that is not blank. A line ends at a line feed: strings may hold other breaks.

    Raises:
        UserError: a line that is not a JSON object.
    """
    lines = enumerate(text.split("\n"), 1)
    return [(f"{path.name}, line {n}", parse_json(line, f"{path}, line {n}")) for n, line in lines if line.strip()]


def _items(values: list[Any], path: Path) -> Named:
    return [(f"{path.name}, item {n}", an_object(value, f"{path}, item {n}")) for n, value in enumerate(values)]


def _lists(text: str) -> list[Any]:
    """The lists of objects in a text that is one JSON object, as in {"version": …, "data": [{…}, …]}."""
    try:
        whole = parse_json(text, "")
    except UserError:
        return []
    return [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]


def _separated(path: Path, tabs: bool, numbers: str | None) -> Named:
    text = read_text(path)
    header = text.lstrip("\n").partition("\n")[0]
    delimiter = "\t" if tabs else ";" if ";" in header and "," not in header else ","
    rows = _cells(text, path, delimiter, quoted=True, strict=tabs)
    if tabs and (not rows or any(len(row) != len(rows[0][1]) or "\n" in "".join(row) for _, row in rows)):
        rows = _cells(text, path, delimiter, quoted=False)  # as GLUE's files are: a quotation mark is one of the text
    if not rows:
        raise UserError(f"{path} has no header.")
    columns = rows[0][1]
    named = [column for column in columns if column]
    if not named or len(set(named)) < len(named):
        raise UserError(f"{path} needs a header with a different name for each column; it has: {', '.join(columns)}.")
    for number, row in rows:
        if len(row) != len(columns):
            raise UserError(f"{path}, line {number} has {len(row)} cells and the header {len(columns)}; repair it.")
    table: dict[str, list[Any]] = {
        column: [row[place] for _, row in rows[1:]] for place, column in enumerate(columns) if column
    }
    if numbers in table:
        table[numbers] = _typed(table[numbers])
    return [
        (f"{path.name}, line {number}", {column: values[index] for column, values in table.items()})
        for index, (number, _) in enumerate(rows[1:])
    ]


def _cells(text: str, path: Path, delimiter: str, quoted: bool, strict: bool = False) -> list[tuple[int, list[str]]]:
    """[(number of the last line, cells)] of every row that is not blank; [] where `strict` finds a quotation mark astray."""
    csv.field_size_limit(LONGEST_CELL)
    options: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, "strict": strict}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **options)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        if strict:
            return []
        raise UserError(f"{path}, line {reader.line_num} cannot be read ({reason(error)}); repair it.") from None


def _typed(cells: list[str]) -> list[Any]:
    """A column as whole numbers or as numbers, where all of its cells are some, else as texts; an empty cell is None then.

    Numbers with leading zeros are texts: they name something.
    """
    filled = [cell.strip() for cell in cells if cell.strip()]
    if filled and all(re.fullmatch(r"[+-]?(0|[1-9]\d{0,17})(\.0+)?", cell) for cell in filled):
        return [int(float(cell)) if cell.strip() else None for cell in cells]
    if filled and all(re.fullmatch(r"[+-]?(0|[1-9]\d*)?(\.\d+)?([eE][+-]?\d{1,3})?", cell) for cell in filled):
        return [float(cell) if cell.strip() else None for cell in cells]
    return list(cells)


def _parquet(path: Path) -> tuple[Named, dict[str, list[str]]]:
    import datasets
    import pyarrow.parquet

    try:
        table = datasets.Dataset(datasets.table.InMemoryTable(pyarrow.parquet.read_table(regular(path))))
        features = table.features
        rows = table.data.table.to_pylist()
    except UserError:
        raise
    except Exception as error:  # the reader raises many kinds; all of them say why the file cannot be read
        raise UserError(f"{path} cannot be read as parquet ({reason(error)}).") from None
    names = {key: list(kind.names) for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    return [(f"{path.name}, row {number}", row) for number, row in enumerate(rows)], names
