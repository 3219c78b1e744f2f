"""Artifacts of runs: a store in an outputs folder keeps them beside itself, wherever that folder is moved.

MLflow stores the absolute place of every experiment and run. Here they are written and read relative to the store, and the
places that its UI reads are corrected once the folder has another name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from foura.tracking.address import DATABASE, database
from foura.tracking.parts import ARTIFACTS, folder_of, place

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "foura"


class Artifacts:
    """The artifacts of a store.

    Args:
        outputs: the folder of the store. uri: the store's address.
    """

    def __init__(self, outputs: Path, uri: str, client: MlflowClient) -> None:
        self.outputs, self.client = outputs, client
        file = database(uri)
        self.own = file is not None and _same(file, outputs / DATABASE)

    def folder(self, run_id: str) -> Path | None:
        """Where a run's artifacts are, for a store that keeps them beside itself; None where MLflow has them elsewhere."""
        if not self.own:
            return None
        run = self.client.get_run(run_id)
        kept = _local(run.info.artifact_uri)
        if kept is None or kept.parts[-3:] != (ARTIFACTS, run_id, "artifacts"):
            return None
        return self.outputs / ARTIFACTS / run_id / "artifacts"

    def log(self, run_id: str, path: Path, under: str | None = None) -> None:
        """Copy a file or folder into the artifact folder `under` of a run."""
        folder = self.folder(run_id)
        if folder is None:
            self.client.log_artifact(run_id, str(path), under)
            return
        target = place(self.outputs, folder / (under or "") / path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True, copy_function=_copy)
        else:
            _copy(path, target)

    def get(self, run_id: str, name: str, into: Path) -> Path | None:
        """An artifact as a local file, fetched to the folder `into` from a server; None if the run has none of that name."""
        folder = self.folder(run_id)
        if folder is not None:
            return folder_of(self.outputs, folder).whole(folder / name)
        with contextlib.suppress(Exception):  # each kind of store says that there is none in its own way
            return Path(self.client.download_artifacts(run_id, name, str(into)))
        return None

    def lacks(self, run_id: str, path: Path, under: str | None = None) -> bool:
        """True if a run in a store that keeps artifacts beside itself has no such artifact."""
        folder = self.folder(run_id)
        return folder is not None and not (folder / (under or "") / path.name).exists()


def mend(outputs: Path, uri: str) -> None:
    """Correct the places of artifacts that the UI reads, where the outputs folder was moved or renamed since they were stored.

    Args:
        outputs: the folder of the store. uri: the store's address.
    """
    file, here = database(uri), outputs / ARTIFACTS
    if file is None or not file.is_file() or not _same(file, outputs / DATABASE):
        return
    # a store that is locked or read-only is corrected at another time: only the UI reads these places
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(file, timeout=5.0)) as store,
        store,
    ):
        found = store.execute("SELECT experiment_id, artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,))
        for experiment_id, location in found.fetchall():
            kept = _local(location or "")
            if kept is None or kept.name != ARTIFACTS or _same(kept, here):
                continue
            store.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here.as_uri(), experiment_id)
            )
            store.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (here.as_uri(), len(location) + 1, experiment_id, len(location) + 1, f"{location}/"),
            )


def _local(uri: str) -> Path | None:
    """The path of a file: URI or of a plain path; None for any other place."""
    parsed = urllib.parse.urlsplit(uri)
    if parsed.scheme not in ("", "file") or parsed.netloc:
        return None
    return Path(urllib.request.url2pathname(parsed.path)) if parsed.scheme else Path(uri)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _copy(source: str | Path, target: str | Path) -> None:
    """Copy beside the target, then rename, with the permissions that a new file has."""
    scratch = Path(target).with_name(f".{os.getpid()}.copying")
    try:
        shutil.copyfile(source, scratch)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
