"""`foura sync`: deliver what a tracking store did not take while runs went on, or has lost since."""

from pathlib import Path

from filelock import FileLock, Timeout

from foura.errors import UserError
from foura.tracking.journal import FILE
from foura.tracking.status import TRASH, read_json, write_json
from foura.tracking.store import open_store
from foura.tracking.tracked_run import TrackedRun


def sync(outputs: Path) -> list[tuple[str, str]]:
    """Deliver the journals of all runs in a folder, and correct the places of artifacts if the folder was moved.

    Runs that another process is executing are left to it, and runs that a user deleted in MLflow stay deleted.

    Returns:
        (name of the run's folder, "delivered", "made again" or "mended") of every run that had something to deliver.

    Raises:
        UserError: the store does not answer or does not take an item, which is kept.
    """
    open_store(outputs)
    done = []
    for path in sorted(outputs.glob(f"*/**/{FILE}")):
        if path.is_relative_to(outputs / TRASH):
            continue
        try:
            with FileLock(path.parent / ".lock").acquire(timeout=0):
                said = _deliver(outputs, path.parent)
        except Timeout:
            continue
        if said:
            done.append((path.parent.name, said))
    return done


def _deliver(outputs: Path, folder: Path) -> str:
    run = TrackedRun(outputs, folder)
    stage = run.stage()
    if stage == "hidden":
        return ""
    if run.outbox.delivered == len(run.outbox.items):
        return "mended" if stage == "there" and run.mend_artifacts() else ""
    if not run.outbox.deliver():
        raise UserError(f"{folder}: the store did not take the run ({run.error}); {FILE} keeps it.")
    status = read_json(folder / "status.json")
    if status:
        write_json(folder / "status.json", {**status, "run_id": run.run_id})
    return "made again" if stage == "lost" else "delivered"
