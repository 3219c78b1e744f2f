"""Files are written as a whole: beside their place, then renamed, with the permissions that the user's umask gives.

Nobody finds half of a file or folder, and a killed process or a full disk leaves none. What lies at the place, a link too, is
replaced and never followed.
"""

import contextlib
import glob
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from foura.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file: the context gets a new file beside `path`, which is renamed to it at the end.

    The file has the permissions that the umask gives, whoever replaces it. What lies at `path`, a link too, is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name[:100]}.{os.getpid()}.writing")
    try:
        mode = _new_file(scratch)
        yield scratch
        os.chmod(
            scratch, mode
        )  # a library may have put another file here: safetensors' are readable by their owner alone
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as a whole."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole."""
    with replacing(path) as scratch:
        scratch.write_bytes(content)


def append_text(path: Path, text: str) -> None:
    """Append to a text file in UTF-8, which is created where there is none.

    Raises:
        UserError: a link or something other than a file is in its place.
    """
    _refuse_other(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Write a folder that does not exist yet: the context gets a folder beside it, which is renamed to it at the end.

    One that a killed process left beside it is deleted, so that the same command works again.

    Raises:
        UserError: something is at `path` already.
    """
    require_new(path)
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.writing"):
        if left.is_dir() and not left.is_symlink() and not _alive(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        yield scratch
        as_umask(scratch)
        os.rename(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def require_new(path: Path) -> None:
    """Require a path at which nothing is.

    Raises:
        UserError: something is there already, a link too.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; name a folder that does not.")


def as_umask(place: Path) -> None:
    """Give a file, or the files in a folder, that a library wrote the permissions that the umask gives."""
    probe = place.with_name(f".{os.getpid()}.mode")
    mode = _new_file(probe)
    probe.unlink()
    files = [place] if place.is_file() else [Path(inner, name) for inner, _, names in os.walk(place) for name in names]
    for path in files:
        if stat.S_ISREG(path.lstat().st_mode):
            path.chmod(mode)


def put(scratch: Path, path: Path) -> None:
    """Put a complete file or folder, which a library wrote, in the place of another one."""
    as_umask(scratch)
    if scratch.is_dir():
        remove(path)
    os.replace(scratch, path)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it, if it is there. No link is followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lock(path: Path) -> FileLock:
    """The lock of a folder, as a file in it.

    Raises:
        UserError: a link, a folder or anything else that is not a file is in its place.
    """
    _refuse_other(path)
    return FileLock(path)


def _new_file(path: Path) -> int:
    """Make an empty file in the place of any other; its permissions."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _refuse_other(path: Path) -> None:
    """Refuse to write to a place that has a link, a folder, a pipe or a device."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise UserError(f"{path} is not a file, and one is to be written there; take it out.")


def _alive(pid: str) -> bool:
    """True if this machine has a process of that number."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
