"""Python processes that this one starts: they import nothing from the working directory, and find this package where it is.

Light on purpose: it is called before anything heavy is imported.
"""

import os
import site
import sys
from pathlib import Path

HOME = str(Path(__file__).resolve().parents[1])  # the folder of this package


def protect_children() -> None:
    """Set the environment of every Python that this process starts, whichever library starts it.

    `python -m MODULE` puts the working directory first on the path of imports, so that a file there called mlflow.py, or
    torch.py, would be executed in place of the package. PYTHONSAFEPATH takes it off. This package may be found through the
    folder of train.py alone, which it takes off too, so that folder is named in PYTHONPATH. Empty entries of PYTHONPATH, which
    a shell leaves behind (PYTHONPATH=$PYTHONPATH:…), would mean the working directory again.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    installed = {os.path.realpath(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())}
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if HOME not in given and HOME not in installed:
        given.insert(0, HOME)
    if given:
        os.environ["PYTHONPATH"] = os.pathsep.join(given)


def leave_working_directory() -> None:
    """Take the working directory off this process's own path, where nobody has named it.

    `python -m foura` puts it first, and an empty entry of PYTHONPATH, which a shell leaves behind, stands for it.
    """
    require_working_directory()
    here = os.getcwd()
    if here == HOME:
        return
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    unnamed = len(given) > 1 and "" in given and here not in given
    named = any(os.path.abspath(entry) == here for entry in given if entry)
    first = not sys.flags.safe_path and sys.path.count(here) > named  # at a second call it may be the named one
    sys.path[:] = [
        entry
        for number, entry in enumerate(sys.path)
        if entry not in ("", here) or not (unnamed or (first and number == 0))
    ]


def require_working_directory() -> None:
    """Exit in a sentence if the working directory was deleted: every relative path is in it, those of libraries too."""
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit("error: the working directory was deleted; change to one that exists (cd ~).")


def again() -> None:
    """Replace this process by the same command."""
    if "PYTHONSAFEPATH" in os.environ and not sys.flags.safe_path:
        del os.environ["PYTHONSAFEPATH"]  # the command itself finds its imports as it did
    os.execv(sys.executable, sys.orig_argv)


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a new Python."""
    return [sys.executable, "-P", "-m", module, *arguments]
