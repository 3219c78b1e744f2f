"""status.json: the state of a run, beside its results. Exit codes and tracking stores can be wrong about a killed run.

{"key": ..., "state": "running|finished|failed|diverged|interrupted", "run_id": ..., "metrics": {...}, "error": ...}
"""

import contextlib
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import Timeout

from foura.atomic import lock, write_text
from foura.errors import Busy, Diverged, Ended, Interrupted, UserError, cannot_write
from foura.escape import redact
from foura.files import parse_json
from foura.tracking.typed import status_of
from foura.untrusted import STATUS, Folder

TRASH = "trash"  # in an outputs folder: runs and sweeps that were dropped, which count for nothing
DONE = ("finished", "diverged")  # a diverged run is a result


class RunStatus:
    """Context of one run: locks its folder against other processes, and keeps status.json true from start to end.

    Args:
        held: the folder is locked already, by the process that started this one.

    Attributes:
        previous: the file's content before, {} where there was none. A state "running" in it means that its process was
            killed, because a living one would hold the lock.
        killed: how often in a row a process of this run was killed before it wrote a new checkpoint.
        fields: the file's content besides "state"; fill in "key", "run_id", "metrics" as they become known.

    Raises:
        Busy: on entering, if another process holds the lock.
    """

    def __init__(self, folder: Path, held: bool = False) -> None:
        self.path, self.checkpoint = folder / "status.json", folder / "checkpoint.pt"
        self.previous: dict[str, Any] = {}
        self.fields: dict[str, Any] = {"key": None, "run_id": None, "metrics": {}}
        self.killed = 0
        self.state: str | None = None
        self.began = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.held, self.lock = held, lock(folder / ".lock")

    def __enter__(self) -> "RunStatus":
        if self.held:  # the process that holds it has written the file
            self.previous = read_json(self.path)
            self.fields |= {key: value for key, value in self.previous.items() if key != "state"}
            return self
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise Busy(f"another process is at this run already ({self.path.parent}).") from None
        self.previous = read_json(self.path)  # no other process can change it from here on
        kept = self._checkpoint_identity()
        if self.previous.get("state") == "running" and self.previous.get("kept", kept) == kept:
            self.killed = _count(self.previous.get("killed")) + 1
        self.fields |= {"kept": kept, "killed": self.killed}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._fail(error)
            elif self.state is not None:
                self.write("finished", seconds=round(time.monotonic() - self.began, 1))
                self.checkpoint.unlink(missing_ok=True)  # only now: until then a killed run resumes from it
        finally:
            self.lock.release()

    def _fail(self, error: BaseException) -> None:
        if self.state is None:  # it did not start: what an earlier process left stays as it was
            self.fields |= {name: self.previous[name] for name in ("key", "run_id", "metrics") if name in self.previous}
        said = redact(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # a full disk: the next process reads "running" without a lock, as of a kill
            self.write(state_of(error), error=said)

    def _checkpoint_identity(self) -> list[int]:
        """[time, size] of the checkpoint, [] for none. The time is only compared for equality, so a reset clock is harmless."""
        path = self.checkpoint
        return [path.stat().st_mtime_ns, path.stat().st_size] if path.is_file() else []

    def write(self, state: str, **more: Any) -> None:
        """Replace the file as a whole, so that no reader ever finds half of it."""
        self.state = state
        self.fields.update(more)
        write_json(self.path, {"state": state, **self.fields})


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def held(folder: Path) -> bool:
    """True if a living process holds the lock of this run folder."""
    if folder.is_symlink():  # looking at it would make a lock wherever it leads
        return False
    try:
        with lock(folder / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (UserError, OSError):  # something that is not a lock is in its place, so that no run can hold it
        return False


def state_of(error: BaseException) -> str:
    """The state of a run that ended with `error`."""
    if isinstance(error, Ended):
        return error.state
    if isinstance(error, Diverged):
        return "diverged"
    if type(error).__name__ == "UncompletedJobError":  # submitit's: the job's time is over and it is not requeued
        return "interrupted"
    ended_from_outside = isinstance(error, (KeyboardInterrupt, SystemExit, Interrupted)) or cannot_write(error)
    return "interrupted" if ended_from_outside else "failed"


def read_json(path: Path) -> dict[str, Any]:
    """The typed content of a status.json; {} where there is none or it cannot be read, which counts as no result."""
    try:
        return status_of(parse_json(Folder(path.parent).read(path.name, STATUS).decode(), path.name))
    except (UserError, UnicodeDecodeError):
        return {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside `path`, then rename over it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=True) + "\n")
