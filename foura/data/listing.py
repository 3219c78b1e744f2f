"""Which files in a user's folder are data. Hidden files, and those that systems and programs leave there, are not.

Every family and command that lists files of a user does it here.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from foura.errors import UserError, first_line
from foura.files import regular
from foura.untrusted import Folder

# of Windows, macOS, Linux, and of network drives (Synology, QNAP, NetApp); compared in lower case
SYSTEM: frozenset[str] = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "found.000"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"),
        *("__macosx", "__pycache__", "network trash folder", "temporary items", "thevolumesettingsfolder"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
    )
)
UNFINISHED = (".bak", ".orig", ".tmp", ".swp", ".swo", ".part", ".crdownload")  # copies of editors, half downloads


def is_data(name: str) -> bool:
    """False for the name of a hidden or system file or folder, and for the backup copies of editors."""
    lower = name.lower()
    hidden = name.startswith(".") or lower in SYSTEM
    backup = name.startswith("~$") or name.endswith("~") or (name.startswith("#") and name.endswith("#"))
    return not (hidden or backup or lower.endswith(UNFINISHED))


def is_data_path(inside: Path) -> bool:
    """False if a path, relative to the folder of data, is or passes through what `is_data` leaves out."""
    *folders, name = inside.parts
    return is_data(name) and all(is_data(folder) for folder in folders)


def data_folders(folder: Path) -> list[Path]:
    """The folders directly in a folder that can hold data, sorted.

    Raises:
        UserError: the folder cannot be read.
    """
    return sorted(entry for entry in _entries(folder) if entry.is_dir() and is_data(entry.name))


def files_in(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    """The data files directly in a folder with one of the extensions (lower case), sorted.

    Raises:
        UserError: the folder cannot be read, or one is not an ordinary file.
    """
    found = (entry for entry in _entries(folder) if entry.name.lower().endswith(extensions) and is_data(entry.name))
    return sorted(regular(entry) for entry in found if not entry.is_dir())


def data_files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    """The data files in a folder and the folders in it, sorted; linked folders are followed, and none is read twice.

    Args:
        extensions: how the names end, in lower case.

    Raises:
        UserError: one that is not an ordinary file, or a folder that cannot be read.
    """
    return sorted(regular(path) for path in _walk(folder) if path.name.lower().endswith(extensions))


def check_links(folder: Folder) -> None:
    """Check the links among the data of a folder, and in the folders that they lead to.

    Raises:
        UserError: one that leads out of the folder.
    """
    if folder.lifted:
        return
    waiting, seen = [folder.root], set()
    while waiting:
        place = waiting.pop()
        if os.path.realpath(place) in seen:
            continue
        seen.add(os.path.realpath(place))
        try:
            entries = list(os.scandir(place))
        except OSError as error:
            raise _unreadable(error) from None
        for entry in entries:
            inner = os.path.isdir(entry.path)  # false too for a link to itself, which entry.is_dir() raises for
            if is_data(entry.name):
                if entry.is_symlink():
                    folder.place(Path(entry.path))
                if inner:
                    waiting.append(Path(entry.path))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise _unreadable(error) from None


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, inner, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above it would lead to the same files again and again
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if is_data(name))
        yield from (Path(place, name) for name in names if is_data(name))


def _refuse(error: OSError) -> None:
    raise _unreadable(error)


def _unreadable(error: OSError) -> UserError:
    return UserError(f"{error.filename} cannot be read ({error.strerror or first_line(error)}).")
