"""`foura sync`: deliver what a tracking store did not take while runs went on, or has lost since."""

import os
from pathlib import Path

from filelock import Timeout

from foura.atomic import lock
from foura.errors import UserError
from foura.tracking.journal import FILE
from foura.tracking.parts import ARTIFACTS, PARTS, part, place
from foura.tracking.status import TRASH, read_json, write_json
from foura.tracking.store import open_store
from foura.tracking.tracked_run import TrackedRun

REFUSED = "refused: "  # a result of `sync` that begins so is a run that the store does not have


def sync(outputs: Path) -> list[tuple[str, str]]:
    """Deliver the journals of all runs in a folder, and correct the places of artifacts if the folder was moved.

    Runs that another process is executing are left to it, and runs that a user deleted in MLflow stay deleted. A run that
    cannot be delivered does not end it for the others.

    Returns:
        (name of the run's folder, "delivered", "made again", "mended" or "refused: …") of every run that had something to
        deliver.

    Raises:
        UserError: the store does not answer.
    """
    open_store(outputs)
    done = _refused_parts(outputs)
    for path in _journals(outputs):
        try:
            place(outputs, path)
            with lock(path.parent / ".lock").acquire(timeout=0):
                said = _deliver(outputs, path.parent)
        except Timeout:
            continue
        except (UserError, OSError) as error:
            open_store(outputs)  # ends here if it is the store that fails
            said = f"{REFUSED}{error}"
        if said:
            done.append((path.parent.name, said))
    return done


def _refused_parts(outputs: Path) -> list[tuple[str, str]]:
    """Parts of the folder that are links and not looked into, as results of `sync`."""
    refused = []
    for name in PARTS:
        try:
            part(outputs, name)
        except UserError as error:
            refused.append((name, f"{REFUSED}{error}"))
    return refused


def _journals(outputs: Path) -> list[Path]:
    """The journals of the runs in a folder. A linked folder with one in it is listed, and not looked into."""
    refused = [name for name, _ in _refused_parts(outputs)]
    linked_parts = [outputs / name for name in PARTS if (outputs / name).is_symlink() and name not in refused]
    without = (outputs / ARTIFACTS, outputs / TRASH)
    found = []
    for top in (outputs, *linked_parts):
        if top in without:
            continue
        for folder, folders, names in os.walk(top):
            inner = [Path(folder, name) for name in folders if not name.startswith(".")]
            inner = [path for path in inner if path not in (*without, *linked_parts)]
            folders[:] = [path.name for path in inner]
            linked = [path / FILE for path in inner if path.is_symlink() and (path / FILE).exists()]
            found += [*linked, *([Path(folder, FILE)] if FILE in names else [])]
    return sorted(found)


def _deliver(outputs: Path, folder: Path) -> str:
    run = TrackedRun(outputs, folder)
    for item in run.outbox.items:
        if "create" in item and item["create"]["sweep"] is not None:
            place(outputs, f"sweeps/{item['create']['sweep']}")  # sweep.json is written there
    stage = run.stage()
    if stage == "hidden":
        return ""
    if run.outbox.delivered == len(run.outbox.items):
        return "mended" if stage == "there" and run.mend_artifacts() else ""
    if not run.outbox.deliver():
        raise UserError(f"the run was not delivered ({run.error}); {FILE} keeps it.")
    status = read_json(folder / "status.json")
    if status:
        write_json(folder / "status.json", {**status, "run_id": run.run_id})
    return "made again" if stage == "lost" else "delivered"
