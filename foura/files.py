"""Files that users name: found, and read as text, JSON or weights. They are untrusted, and checked before a library gets them.

Nothing here waits for a pipe, or lets a parser's exception reach the user.
"""

import csv
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foura.errors import UserError, reason
from foura.escape import cell

GZIP = b"\x1f\x8b"  # how such a file begins
MOST_TEXT = 2**32  # bytes of a text file, unpacked: a few kilobytes can hold any number of them


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


def regular(path: Path) -> Path:
    """The path of an ordinary file: opening a pipe would wait forever, and a device may have no end.

    Raises:
        UserError: it is not an ordinary file.
    """
    try:
        if path.is_file():
            return path
    except OSError:
        pass
    raise UserError(f"{path} is not a file that can be read; take it out or name another.")


def read_text(path: Path) -> str:
    """A text file in UTF-8, without the byte order mark that some editors put first; unpacked if it is a gzip file.

    Raises:
        UserError: it is not UTF-8, cannot be read, or is blank.
    """
    text = read_any_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty.")
    return text


def read_any_text(path: Path) -> str:
    """As `read_text`, and a file that is blank too."""
    try:
        with regular(path).open("rb") as file:
            packed = file.read(len(GZIP)) == GZIP
            file.seek(0)
            raw = gzip.GzipFile(fileobj=file).read(MOST_TEXT + 1) if packed else file.read()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it or take it out.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({reason(error)}); make it again or take it out.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if packed and len(raw) > MOST_TEXT:
        raise UserError(f"{path} holds more than {MOST_TEXT} bytes when it is unpacked; cut it into several files.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: there is none.
    """
    return parse_json(read_text(path), str(path))


def read_weights(path: Path) -> dict[str, Any]:
    """{name: tensor} of a safetensors file. No other format is read: a pickle can run code.

    Raises:
        UserError: it is not one, or damaged, which its checksum tells where the tensors do not.
    """
    from safetensors.torch import load_file

    verify_checksum(path)
    try:
        return load_file(regular(path))
    except UserError:
        raise
    except Exception as error:  # the parser raises its own kind, and others for unknown dtypes and sizes
        raise UserError(f"{path} cannot be read as safetensors ({reason(error)}).") from None


def write_weights(state: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """Write {name: tensor} as safetensors with its checksum: under a temporary name, then renamed, so never half a file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata=metadata)
        temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
        os.replace(temporary, path)
        write_checksum(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_checksum(path: Path) -> None:
    """Write a file's checksum beside it, as sha256sum does: safetensors have none, and a flipped bit is still a number."""
    _checksum_file(path).write_text(f"{checksum(path)}  {path.name}\n", encoding="utf-8")


def verify_checksum(path: Path) -> None:
    """Verify a file against its stored checksum; a file without one passes.

    Raises:
        UserError: it has changed.
    """
    stored = _checksum_file(path)
    if stored.is_file() and read_text(stored).split()[0] != checksum(regular(path)):
        raise UserError(
            f"{path} is damaged: it is not the file whose checksum is in {stored.name}. Make it again (a run's adapter by its "
            "command with force=true, a bundled backbone by `foura pretrain`)."
        )


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([cell(name) for name in names])
        writer.writerows([cell(row[name]) for name in names] for row in rows)
