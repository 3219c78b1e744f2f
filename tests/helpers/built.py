"""Checks a wheel or source distribution against the files of the package: python -m tests.helpers.built FOLDER."""

import sys
import tarfile
import zipfile
from pathlib import Path

from foura import __version__

PACKAGE = Path(__file__).resolve().parents[2] / "foura"
LEFT_OUT = {"__pycache__"}  # what a working copy has beside its files


def of_package() -> set[str]:
    """The files of the package, as in "foura/run/run.py"; its Markdown is read at the code's host."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and not LEFT_OUT & set(path.parts))
    return {f"foura/{path.relative_to(PACKAGE)}" for path in files if path.suffix != ".md"}


def in_archive(path: Path) -> set[str]:
    """The files of a wheel, or of a source distribution without the name of its folder."""
    if path.suffix == ".whl":
        return set(zipfile.ZipFile(path).namelist())
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def faults(path: Path) -> list[str]:
    """What is wrong with a built archive: another version in its name, files that are missing or do not belong there."""
    found, wanted = in_archive(path), of_package()
    said = [] if f"foura-{__version__}" in path.name else [f"{path.name} is not of version {__version__}"]
    said += [f"{path.name} lacks {name}" for name in sorted(wanted - found)]
    others = {name for name in found if name.startswith("foura/")} - wanted
    if path.suffix == ".whl":
        others |= {name for name in found if not name.startswith(("foura/", f"foura-{__version__}.dist-info/"))}
    return said + [f"{path.name} has {name}, which is no file of the package" for name in sorted(others)]


if __name__ == "__main__":
    archives = sorted(path for path in Path(sys.argv[1]).iterdir() if path.name.endswith((".whl", ".tar.gz")))
    wrong = [fault for path in archives for fault in faults(path)]
    if len(archives) != 2:
        wrong.append(f"{sys.argv[1]} holds {len(archives)} archives, not a wheel and a source distribution")
    print("\n".join(wrong) or f"checked: {', '.join(path.name for path in archives)}")
    sys.exit(bool(wrong))
