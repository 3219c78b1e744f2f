"""The parts of an outputs folder, each of which may be a link to a folder on another disk if the user has said so.

An outputs folder can come from other people, and then a link in it leads wherever they like: a report would be written there,
and journals there would be sent. So a part that is a link is followed only if its target has a file `CONSENT`, which nobody
can have put there by sending a folder. Training into an outputs folder makes it: it writes through the link anyway.
"""

import os
from pathlib import Path

from foura.atomic import write_text
from foura.errors import UserError
from foura.tracking.status import TRASH
from foura.untrusted import Folder

ARTIFACTS = "artifacts"
PARTS = ("runs", "sweeps", ARTIFACTS, TRASH)
CONSENT = ".foura-outputs"


def part(outputs: Path, name: str) -> Path:
    """The path of a part of an outputs folder, which need not exist.

    Raises:
        UserError: it is a link that the user has not agreed to, or that leads nowhere.
    """
    path = outputs / name
    if not path.is_symlink():
        return path
    target = _target(path)
    if Folder(target).has(CONSENT):
        return path
    raise UserError(
        f"{path} is a link to {target}, which whoever made this folder has chosen. If you made it: touch {target / CONSENT}"
    )


def _target(link: Path) -> Path:
    target = Path(os.path.realpath(link))
    if not target.is_dir():
        raise UserError(f"{link} is a link to {target}, where there is no folder: is its disk mounted?")
    return target


def folder_of(outputs: Path, path: Path | str) -> Folder:
    """The folder of untrusted files that a file or folder of an outputs folder is in: a part of it, or all of it.

    Args:
        path: a string is relative to the outputs folder, a Path is a whole path.

    Raises:
        UserError: as of `part`.
    """
    first = os.path.relpath(os.path.abspath(outputs / path), os.path.abspath(outputs)).split(os.sep)[0]
    return Folder(part(outputs, first)) if first in PARTS and (outputs / first).is_symlink() else Folder(outputs)


def place(outputs: Path, path: Path | str) -> Path:
    """The real path of a file or folder in an outputs folder; as `Folder.place`."""
    return folder_of(outputs, path).place(outputs / path)


def agree_to_links(outputs: Path) -> None:
    """Note in the targets of those parts that are links that the user's runs are written to them.

    Raises:
        UserError: one leads nowhere.
    """
    for name in PARTS:
        if (outputs / name).is_symlink():
            consent = _target(outputs / name) / CONSENT
            if not consent.exists():
                write_text(consent, f"runs are written here, from {outputs}\n")
