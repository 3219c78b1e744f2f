"""status.json: the truth about a run, beside its results. Exit codes and tracking stores can be wrong about a killed run.

{"key": ..., "state": "running|finished|failed|diverged|interrupted", "run_id": ..., "metrics": {...}, "error": ...}
"""

import json
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from foura.errors import Diverged, UserError


class RunStatus:
    """Context of one run: writes status.json at its start, at its end, and with the reason when it does not end well.

    Attributes:
        fields: what the file holds besides "state"; fill in "key", "run_id", "metrics" as they become known.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "status.json"
        self.fields: dict[str, Any] = {"key": None, "run_id": None, "metrics": {}}
        self.state = "running"

    def __enter__(self) -> "RunStatus":
        self.write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.write("finished")
            return
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.write(state_of(error), error=said)

    def write(self, state: str, **more: Any) -> None:
        """Replace the file as a whole; nobody ever reads half of it."""
        self.state = state
        self.fields.update(more)
        write_json(self.path, {"state": state, **self.fields})


def state_of(error: BaseException) -> str:
    """The state that a run ends in because of `error`."""
    if isinstance(error, Diverged):
        return "diverged"
    return "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside `path`, then rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, allow_nan=True)
            file.write("\n")
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
