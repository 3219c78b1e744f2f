"""The project's commands as functions, in this process: `python train.py …` and `foura …`."""

import contextlib
import io
import os
import runpy
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hydra.core.global_hydra import GlobalHydra

from foura.tracking.store import open_store

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: 0, or what sys.exit was given. out: what it printed, on standard output and then on standard error.
    """

    code: Any
    out: str
    outputs: Path

    def folder(self) -> Path:
        """The folder of the only run."""
        (status,) = self.outputs.glob("runs/*/status.json")
        return status.parent


def run_train(*arguments: str, outputs: Path) -> Ended:
    """`python train.py ARGUMENTS outputs=OUTPUTS`, from the folder that OUTPUTS is in."""
    GlobalHydra.instance().clear()
    cache = str(outputs.parent / "hf")
    with _command("train.py", *arguments, f'outputs="{outputs}"') as said:
        os.environ["HF_DATASETS_CACHE"] = cache
        os.chdir(outputs.parent)
        code = _code(lambda: runpy.run_path(str(ROOT / "train.py"), run_name="__main__"))
    return Ended(code, "".join(part.getvalue() for part in said), outputs)


def run_foura(*arguments: str, outputs: Path) -> Ended:
    """`foura ARGUMENTS`, from the folder that OUTPUTS is in."""
    from foura.cli import main

    with _command("foura", *arguments) as said:
        os.chdir(outputs.parent)
        code = _code(main)
    return Ended(code, "".join(part.getvalue() for part in said), outputs)


@contextlib.contextmanager
def _command(*argv: str) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Arguments, environment and folder as a command of its own would have them; yields (standard output, error)."""
    out, error, here, on_sigterm = io.StringIO(), io.StringIO(), Path.cwd(), signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", list(argv)),
            mock.patch.dict(os.environ),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
        ):
            yield out, error
    finally:
        os.chdir(here)
        signal.signal(signal.SIGTERM, on_sigterm)


def _code(command: Any) -> Any:
    try:
        command()
    except SystemExit as ended:
        return ended.code
    return 0


def new_store(path: Path) -> None:
    """An SQLite store of MLflow's with nothing in it; to make its tables takes a second, to copy them nothing."""
    place = path.parent / "template"
    open_store(place)
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as store, store:
        for table in ("experiment_tags", "experiments"):
            store.execute(f"DELETE FROM {table}")
    shutil.copy(place / "mlflow.db", path)
