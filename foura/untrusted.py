"""The one door to files: every file of a run, adapter, checkpoint, journal, model or data folder is opened here.

Such folders come from other people. A file is opened if its real path is inside its folder, it is an ordinary file, and it is
no larger than the most that a file of its kind has. (`foura.atomic` writes them.)

Links are refused in run folders, journals and exports. In data and model folders they are followed where they stay inside of
the folder or lead to the blobs of a hub cache, whose snapshots consist of links; anywhere else only by a key.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from foura.errors import UserError

KB, MB, GB = 2**10, 2**20, 2**30
# the most bytes of a file: far above any real one
SHORT, CONFIG, STATUS, JSON, JOURNAL, TEXT = 4 * KB, MB, 16 * MB, 16 * MB, GB, 16 * GB
WEIGHTS = 2**42
HOLLOW, HOLLOW_BY = 256 * MB, 100  # bytes of any file that may be holes, and how often its written bytes beside them
DEEPEST = 64  # folders below the one that was named
NAME = re.compile(r"[\w.+-]{1,100}")


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of untrusted files.

    Attributes:
        root: the folder, as the user named it: it may itself be a link, because the user chose it.
        links: true: links in it are followed where they stay inside or lead to a hub cache; false: none is.
        key: the config key that lifts the rule for links; None if nothing does. lifted: true if it is set.
        any_size: true if the key for sizes is set. size_key: its name.
    """

    root: Path
    links: bool = False
    key: str | None = None
    lifted: bool = False
    any_size: bool = False
    size_key: str | None = None

    @functools.cached_property
    def real(self) -> Path:
        """The real path of the folder."""
        return Path(os.path.realpath(self.root))

    def file(self, path: Path | str, most: int) -> Path:
        """The real path of a file in the folder, checked: it may be given to a library.

        Args:
            path: a string is relative to the folder, a Path is a whole path. most: bytes.

        Raises:
            UserError: it is outside of the folder, is not an ordinary file, is larger, or consists of holes.
        """
        real = self.place(path)
        size = ordinary(real, self.named(path)).st_size
        if size > most and not self.any_size:
            raise UserError(f"{self.named(path)} has {_size(size)}, more than the {_size(most)} that {self._lift()}")
        if size > HOLLOW and not self.any_size and is_hollow(real, size):
            raise UserError(
                f"{self.named(path)} says that it has {_size(size)} and is nearly empty, unlike what {self._lift()}"
            )
        return real

    def named(self, path: Path | str) -> Path:
        """The path as the user reads it: a string is relative to the folder."""
        return self.root / path if isinstance(path, str) else path

    def place(self, path: Path | str) -> Path:
        """The real path of a file or folder inside of the folder.

        Raises:
            UserError: it is outside, or a link that is not followed.
        """
        named, root = self.named(path), self.real
        try:
            real = Path(os.path.realpath(named))
            unlinked = root / os.path.relpath(os.path.abspath(named), os.path.abspath(self.root))
        except ValueError:  # a zero in the name
            raise UserError(f"{str(named)!r} is not the name of a file.") from None
        if self.lifted or (real == unlinked and real.is_relative_to(root)):
            return real
        if self.links and (real.is_relative_to(root) or _is_blob(real, root)):
            return real
        lift = f", or set {self.key}=true to follow links" if self.key and self.links else ""
        raise UserError(f"{named} leads out of {self.root} or is a link; take it out{lift}.")

    def open(self, path: Path | str, most: int) -> BufferedReader:
        """Open a file in the folder to read its bytes; as `file`."""
        return open_regular(self.file(path, most))

    def read(self, path: Path | str, most: int) -> bytes:
        """The bytes of a file in the folder; as `file`."""
        with self.open(path, most) as file:
            there = os.fstat(file.fileno()).st_size  # Python reserves the memory for all bytes that it is asked to read
            found = file.read(-1 if self.any_size else min(there, most) + 1)
        if len(found) > most and not self.any_size:  # it grew since it was checked
            raise UserError(f"{self.named(path)} has more than the {_size(most)} that {self._lift()}")
        return found

    def has(self, path: Path | str) -> bool:
        """True if there is something at this place in the folder, a link that leads nowhere included."""
        return os.path.lexists(self.named(path))

    def whole(self, path: Path | str) -> Path | None:
        """A file, or a folder with all that is in it, checked to be given to a library; None where there is nothing.

        Raises:
            UserError: it, or something in it, is outside, a link, or not an ordinary file.
        """
        named = self.named(path)
        if not os.path.lexists(named):
            return None
        if self.place(named).is_dir():
            dataclasses.replace(self, root=named).files()
        else:
            self.file(named, WEIGHTS)
        return named

    def files(self, suffixes: tuple[str, ...] = ("",), deepest: int = DEEPEST) -> list[Path]:
        """The files in the folder and the folders in it whose names end in one of the suffixes (in small letters); sorted.

        A folder that links lead to more than once is listed once.

        Raises:
            UserError: one of them is outside of the folder, or not an ordinary file.
        """
        found: list[Path] = []
        seen: set[str] = set()
        waiting = [(self.root, 0)]
        while waiting:
            folder, depth = waiting.pop()
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            inner = []
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                path = folder / entry.name
                wanted = entry.name.lower().endswith(suffixes)
                is_folder = os.path.isdir(path)  # false too for a link to itself, which entry.is_dir() raises for
                if entry.is_symlink() and (wanted or is_folder):
                    self.place(path)
                if is_folder:
                    inner.append((path, depth + 1))
                elif wanted:
                    ordinary(path)
                    found.append(path)
            waiting += inner[::-1] if depth < deepest else []
        return sorted(found)

    def _lift(self) -> str:
        return "any real one has" + (f"; {self.size_key}=true takes it." if self.size_key else "; take it out.")


def of(path: Path) -> tuple[Folder, str]:
    """(the folder, the name in it) of a file that the user named: its own path may be a link."""
    real = Path(os.path.realpath(path))
    return Folder(real.parent), real.name


def ordinary(path: Path, named: Path | None = None) -> os.stat_result:
    """The status of an ordinary file: opening a pipe would wait forever, and a device may have no end.

    Args:
        named: what a message calls it.

    Raises:
        UserError: it is not an ordinary file.
    """
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            return found
    raise UserError(f"{named or path} is not a file that can be read; take it out or name another.")


def open_regular(path: Path) -> BufferedReader:
    """Open a real path, which is not a link, to read its bytes; nothing but an ordinary file is opened.

    Raises:
        UserError: it is something else, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a file that can be read; take it out or name another.")
    return open(descriptor, "rb")


def is_hollow(path: Path, size: int) -> bool:
    """True for a file of holes: it takes no room on the disk, and all of it once it is read, copied or sent.

    Args:
        path: of an ordinary file, not a link. size: its bytes. On a file system that does not tell, no file is.
    """
    written, place = 0, 0
    with open_regular(path) as file:
        while place < size and HOLLOW + HOLLOW_BY * written < size:
            try:
                start = os.lseek(file.fileno(), place, os.SEEK_DATA)
                place = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                return error.errno == errno.ENXIO  # nothing but a hole follows
            written += place - start
    return HOLLOW + HOLLOW_BY * written < size


def open_unbounded(path: Path) -> BufferedReader:
    """Open a file that the user named, to read its bytes in parts."""
    folder, name = of(path)
    return folder.open(name, WEIGHTS)


def is_name(text: Any) -> bool:
    """True for a name that can be one folder's: 1 to 100 letters, digits, '.', '_', '+' or '-', and not dots alone."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None and text.strip(".") != ""


def _is_blob(real: Path, root: Path) -> bool:
    """True for a file in the blobs of the hub cache that `root` is a snapshot in: …/blobs/HASH beside …/snapshots/REVISION."""
    parts = root.parts
    if "snapshots" not in parts:
        return False
    last = len(parts) - 1 - parts[::-1].index("snapshots")
    return real.parent == Path(*parts[:last], "blobs")


def _size(count: int) -> str:
    """Bytes in words."""
    for unit, scale in (("GB", GB), ("MB", MB), ("KB", KB)):
        if count >= scale:
            return f"{count / scale:.0f} {unit}"
    return f"{count} bytes"
