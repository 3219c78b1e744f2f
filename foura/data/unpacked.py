"""How much a file of data holds once it is unpacked: a few hundred bytes of an archive or a table can hold any number.

It is measured before a library reads the file, without unpacking more of it than is allowed, or than one value.
"""

import bz2
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foura.errors import UserError, reason
from foura.files import PACKED_BY, UNPACKED
from foura.untrusted import open_regular

PACKINGS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
ZIP, PARQUET = b"PK\x03\x04", b"PAR1"
TAR = (b"ustar", 257)  # where a tar archive says that it is one
# of zstandard, lz4, 7-zip, RAR, LZMA: not measured here
UNMEASURED = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"]\x00\x00")
CELL = 8  # bytes that any cell of a table takes at least
ROWS = 2**16  # of a table, measured at once


def check_unpacked(path: Path) -> None:
    """Refuse an archive or a table that unpacks to more than any real one, which would fill the memory or the disk.

    Args:
        path: of an ordinary file, not a link.

    Raises:
        UserError: it does, or it cannot be measured.
    """
    size = path.stat().st_size
    most = UNPACKED + PACKED_BY * size
    with open_regular(path) as file:
        start = file.read(TAR[1] + len(TAR[0]))
    if start.startswith(UNMEASURED):
        raise UserError(f"{path} is an archive that cannot be measured before it is unpacked; unpack it.")
    try:
        held = _held(path, start, most)
    except Exception as error:  # the parsers of archives and tables raise many kinds
        kind = "parquet" if start.startswith(PARQUET) else "an archive"
        raise UserError(f"{path} cannot be read as {kind} ({reason(error)}); make it again or take it out.") from None
    if held > most:
        raise UserError(
            f"{path} has {size} bytes and unpacks to more than {most}, which no data does; dataset.any_size=true takes it."
        )


def _held(path: Path, start: bytes, most: int) -> int:
    """The bytes that a file unpacks to; of those that are more than `most` some number above it."""
    if start.startswith(PARQUET):
        return _of_table(path, most)
    if start.startswith(ZIP):
        return sum(part.file_size for part in zipfile.ZipFile(path).infolist())
    packing = next((opened for magic, opened in PACKINGS.items() if start.startswith(magic)), None)
    held = 0
    if packing is not None:
        with open_regular(path) as file, packing(file) as unpacked:
            while held <= most and (part := unpacked.read(2**20)):
                held += len(part)
    if held <= most and (start[TAR[1] :] == TAR[0] or (packing is not None and tarfile.is_tarfile(path))):
        with tarfile.open(path) as archive:  # a member of holes is short there, and long once it is read
            return max(held, sum(member.size for member in archive))
    return held


def _of_table(path: Path, most: int) -> int:
    """The bytes of a parquet table in memory: a value that repeats is stored once, with the number of its repetitions."""
    import pyarrow.parquet

    described = pyarrow.parquet.ParquetFile(path).metadata
    groups = [described.row_group(number) for number in range(described.num_row_groups)]
    chunks = [(n, group.column(column)) for n, group in enumerate(groups) for column in range(group.num_columns)]
    texts = sorted({chunk.path_in_schema for _, chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})
    widths = {described.schema.column(n).path: described.schema.column(n).length for n in range(described.num_columns)}
    held = sum(
        chunk.total_uncompressed_size + chunk.num_values * max(CELL, widths.get(chunk.path_in_schema, 0))
        for _, chunk in chunks
    )
    file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts, memory_map=True)
    repeated = [(n, chunk) for n, chunk in chunks if chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page]
    # no value is longer than the longest of its dictionary, but for those that are stored as they are
    bound = sum(chunk.num_values * _longest(file, n, chunk.path_in_schema) for n, chunk in repeated)
    if held > most or held + bound <= most:
        return held
    for number, chunk in repeated:
        for lengths in _lengths(file, number, chunk.path_in_schema, ROWS):
            held += lengths
            if held > most:
                return held
    return held


def _longest(file: Any, group: int, column: str) -> int:
    """The length of the longest value in the dictionary of a column in a group of rows."""
    import pyarrow.compute

    batch = next(file.iter_batches(1, row_groups=[group], columns=[column]), None)
    found = [] if batch is None else [leaf for array in batch.columns for leaf in _leaves(array)]
    longest = (pyarrow.compute.max(pyarrow.compute.binary_length(leaf.dictionary)).as_py() for leaf in found)
    return max((length or 0 for length in longest), default=0)


def _lengths(file: Any, group: int, column: str, rows: int) -> Iterator[int]:
    """The bytes of a column's values, a number for every few rows; each value is in memory once."""
    import pyarrow.compute

    for batch in file.iter_batches(rows, row_groups=[group], columns=[column]):
        for array in batch.columns:
            for leaf in _leaves(array):
                lengths = pyarrow.compute.take(pyarrow.compute.binary_length(leaf.dictionary), leaf.indices)
                yield pyarrow.compute.sum(lengths.cast("int64")).as_py() or 0


def _leaves(array: Any) -> Iterator[Any]:
    """The arrays with a dictionary in an array of structs and lists."""
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        yield array
    elif pyarrow.types.is_struct(array.type):
        for inner in array.flatten():
            yield from _leaves(inner)
    elif pyarrow.types.is_nested(array.type):
        yield from _leaves(array.flatten() if not pyarrow.types.is_map(array.type) else array.items)
