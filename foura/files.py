"""Files that users name: found, and read as text, JSON or weights. They are untrusted, and checked before a library gets them.

Nothing here waits for a pipe, or lets a parser's exception reach the user.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foura.atomic import replacing, write_text
from foura.errors import UserError, reason
from foura.escape import cell
from foura.untrusted import JSON, MB, SHORT, TEXT, WEIGHTS, Folder, of, open_unbounded, ordinary

GZIP = b"\x1f\x8b"  # how such a file begins
UNPACKED, PACKED_BY = 256 * MB, 100  # bytes that any gzip file may hold, and how often its own size beside them


def here(path: str) -> Path | None:
    """The place that a path names, with ~ expanded, or None where nothing is or can be."""
    try:
        place = Path(path).expanduser()
        return place if place.exists() else None
    except (OSError, RuntimeError):  # a name that is too long, a folder without permission, ~ of an unknown user
        return None


def find(path: str, key: str) -> Path:
    """The place that the config's `key` names.

    Raises:
        UserError: nothing is there.
    """
    place = here(path)
    if place is None:
        raise UserError(f"{key}={path}: there is nothing at that place.")
    return place


def from_here(path: Path) -> str:
    """A path relative to the working directory, as it is where that was deleted."""
    try:
        return os.path.relpath(path)
    except FileNotFoundError:
        return str(path)


def regular(path: Path) -> Path:
    """The path of an ordinary file: opening a pipe would wait forever, and a device may have no end.

    Raises:
        UserError: it is not an ordinary file.
    """
    ordinary(path)
    return path


def read_text(path: Path, folder: Folder | None = None, most: int = TEXT) -> str:
    """A text file in UTF-8, without the byte order mark that some editors put first; unpacked if it is a gzip file.

    Args:
        folder: of other people's files, in which it has to be; None: the user named the file itself.
        most: bytes.

    Raises:
        UserError: it is not UTF-8, cannot be read, is too large, or is blank.
    """
    text = read_any_text(path, folder, most)
    if not text.strip():
        raise UserError(f"{path} is empty.")
    return text


def read_any_text(path: Path, folder: Folder | None = None, most: int = TEXT) -> str:
    """As `read_text`, and a file that is blank too."""
    inside, name = of(path) if folder is None else (folder, path)
    raw = inside.read(name, most)
    try:
        if raw.startswith(GZIP):
            raw = _unpacked(raw, path, inside, most)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it or take it out.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({reason(error)}); make it again or take it out.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unpacked(raw: bytes, path: Path, folder: Folder, most: int) -> bytes:
    """The content of a gzip file, of which a few kilobytes can hold any number of bytes."""
    limit = min(most, UNPACKED + PACKED_BY * len(raw))
    packed, found = gzip.GzipFile(fileobj=io.BytesIO(raw)), bytearray()
    while (folder.any_size or len(found) <= limit) and (part := packed.read(MB)):
        found += part
    if len(found) > limit and not folder.any_size:
        raise UserError(
            f"{path} has {len(raw)} bytes and holds more than {limit} when it is unpacked, which no text does; "
            f"{folder.size_key or 'unpack it'}{'=true takes it' if folder.size_key else ' and look at it'}."
        )
    return bytes(found)


def parse_json(text: str, name: str) -> dict[str, Any]:
    """The object in a JSON text.

    Raises:
        UserError: it is not JSON, or not an object; the message begins with `name`.
    """
    return an_object(parse_any_json(text, name), name)


def parse_any_json(text: str, name: str) -> Any:
    """The value in a JSON text.

    Raises:
        UserError: it is not JSON; the message begins with `name`.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name} is not JSON: {error.msg}.") from None
    except (RecursionError, ValueError):  # nested thousands deep; an integer of thousands of digits
        raise UserError(f"{name} is JSON that is nested too deep, or has a number that is too long.") from None


def an_object(value: Any, name: str) -> dict[str, Any]:
    """The value, if it is a JSON object.

    Raises:
        UserError: it is not; the message begins with `name`.
    """
    if not isinstance(value, dict):
        raise UserError(f"{name} is {type(value).__name__}, not an object with fields.")
    return value


def read_json(path: Path, folder: Folder | None = None, most: int = JSON) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        folder, most: as of `read_text`.

    Raises:
        UserError: there is none.
    """
    return parse_json(read_text(path, folder, most), str(path))


def read_weights(path: Path, folder: Folder | None = None) -> dict[str, Any]:
    """{name: tensor} of a safetensors file. No other format is read: a pickle can run code.

    Args:
        folder: as of `read_text`.

    Raises:
        UserError: it is not one, or damaged, which its checksum tells where the tensors do not.
    """
    from safetensors.torch import load_file

    real = _real(path, folder)
    verify_checksum(path, folder)
    try:
        return load_file(real)
    except Exception as error:  # the parser raises its own kind, and others for unknown dtypes and sizes
        raise UserError(f"{path} cannot be read as safetensors ({reason(error)}).") from None


def write_weights(state: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """Write {name: tensor} as safetensors with its checksum: under a temporary name, then renamed, so never half a file."""
    from safetensors.torch import save_file

    with replacing(path) as scratch:
        save_file(state, scratch, metadata=metadata)
    write_checksum(path)


def write_checksum(path: Path) -> None:
    """Write a file's checksum beside it, as sha256sum does: safetensors have none, and a flipped bit is still a number."""
    write_text(_checksum_file(path), f"{checksum(path)}  {path.name}\n")


def verify_checksum(path: Path, folder: Folder | None = None) -> None:
    """Verify a file against its stored checksum; a file without one passes.

    Args:
        folder: as of `read_text`.

    Raises:
        UserError: it has changed.
    """
    stored = _checksum_file(path)
    if not os.path.lexists(stored):
        return
    if read_text(stored, folder, SHORT).split()[0] != checksum(_real(path, folder)):
        raise UserError(
            f"{path} is damaged: it is not the file whose checksum is in {stored.name}. Make it again (a run's adapter by its "
            "command with force=true, a bundled backbone by `foura pretrain`)."
        )


def checksum(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open_unbounded(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _real(path: Path, folder: Folder | None) -> Path:
    inside, name = of(path) if folder is None else (folder, path)
    return inside.file(name, WEIGHTS)


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def unfit(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """The first difference between tensors that were found and those that are wanted, by name and shape, or None."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} is not a weight of the model"
        if found[name].shape != wanted[name].shape:
            return f"{name} is {tuple(found[name].shape)} and should be {tuple(wanted[name].shape)}"
        if found[name].is_floating_point() != wanted[name].is_floating_point() or found[name].is_complex():
            return f"{name} holds {found[name].dtype}"
    return None


def write_csv(rows: Sequence[dict[str, Any]], path: Path, columns: Sequence[str] | None = None) -> None:
    """Write rows as a CSV file with a header, that a spreadsheet opens without computing anything in it.

    Args:
        columns: of the file; None: those of the first row.
    """
    names = list(rows[0]) if columns is None else columns
    with replacing(path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([cell(name) for name in names])
        writer.writerows([cell(row[name]) for name in names] for row in rows)
