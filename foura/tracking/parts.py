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
        UserError: it is a link that the user has not agreed to.
    """
    path = outputs / name
    if not path.is_symlink() or Folder(path).place(CONSENT).is_file():
        return path
    consent = Path(os.path.realpath(path)) / CONSENT
    raise UserError(
        f"{path} is a link to {consent.parent}, which whoever made this folder has chosen. If you made it: touch {consent}"
    )


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
    """Note in the targets of those parts that are links that the user's runs are written to them."""
    for name in PARTS:
        if (outputs / name).is_symlink() and (outputs / name).is_dir() and not (outputs / name / CONSENT).exists():
            write_text(outputs / name / CONSENT, f"runs are written here, from {outputs}\n")
