"""`foura status` and `foura drop`: all runs and sweeps of a folder, and taking one of them away."""

import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foura.errors import UserError
from foura.metrics import METRICS
from foura.sweep.plan import run_status
from foura.tracking.parts import part, place
from foura.tracking.status import TRASH, held

AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


@dataclass(frozen=True)
class Listed:
    """A run as `foura status` lists it.

    Attributes:
        name: of its folder. metric: key of the metric that it is judged by, "" where none is known yet.
        value: of that metric on validation data, in the selected epoch. time: of its last change, seconds since the epoch.
    """

    folder: Path
    name: str
    state: str
    metric: str
    value: float | None
    time: float
    error: str = ""

    def line(self, now: float) -> str:
        """State, validation metric, age and name."""
        shown = "" if self.value is None else f"val {self.metric} {self.value:.3f}"
        return f"{self.state:<12} {shown:<16} {age(now - self.time):>8}  {self.name}  {self.error}".rstrip()


def listed(folder: Path) -> Listed:
    """A run's folder as a line of the list."""
    status: dict[str, Any] = run_status(folder)
    metrics: Any = status.get("metrics") if isinstance(status.get("metrics"), dict) else {}
    metric = str(status.get("curve", "loss"))  # runs of before 0.2.0 do not say
    value = metrics.get(f"best/{metric}")
    known = float(value) if isinstance(value, int | float) and metric in METRICS else None
    path = folder / "status.json"
    changed = path.stat().st_mtime if path.exists() else 0.0
    error = str(status.get("error", ""))
    return Listed(folder, folder.name, str(status["state"]), metric, known, changed, error)


def runs_in(folder: Path) -> list[Listed]:
    """The runs that were started in a folder, by name."""
    return [listed(path.parent) for path in sorted(folder.glob("*/status.json"))]


def best(runs: list[Listed]) -> Listed | None:
    """The run with the best validation value of those that have the metric of the first one; None without values."""
    valued = [run for run in runs if run.value is not None]
    alike = [run for run in valued if run.metric == valued[0].metric]
    return max(alike, key=lambda run: METRICS[run.metric].sign * (run.value or 0.0), default=None)


def overview(outputs: Path, only_best: bool) -> list[str]:
    """The sweeps of a folder with the best run of each, the single runs, and the trash.

    Args:
        only_best: only the best run of every sweep and, for each metric, of the single runs.
    """
    now, lines = time.time(), []
    for folder in sorted(path for path in part(outputs, "sweeps").glob("*") if path.is_dir()):
        runs = runs_in(folder)
        found, counts = best(runs), Counter(run.state for run in runs)
        said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "nothing started"
        last = max((run.time for run in runs), default=now)
        lines.append(f"sweep {folder.name}: {said}, {age(now - last)}")
        lines += [] if found is None else [f"  best: {found.line(now)}"]
    single = runs_in(part(outputs, "runs"))
    if only_best:
        metrics = dict.fromkeys(run.metric for run in single)
        chosen = [best([run for run in single if run.metric == metric]) for metric in metrics]
        single = [run for run in chosen if run is not None]
    lines += [run.line(now) for run in single]
    return [*lines, *_trash(outputs)] or ["no runs yet"]


def _trash(outputs: Path) -> list[str]:
    kept = sorted(path for path in part(outputs, TRASH).glob("*/*") if path.is_dir())
    size = sum(path.stat().st_size for folder in kept for path in folder.rglob("*") if path.is_file()) / 1e6
    names = ", ".join(path.name for path in kept)
    where = os.path.relpath(outputs / TRASH)
    return [f"trash: {names} ({size:.0f} MB in {where}; delete that folder to free it)"] if kept else []


def age(seconds: float) -> str:
    """A duration in its largest unit: "3 h ago"."""
    for unit, name in AGES:
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} ago"
    return "just now"


def drop(outputs: Path, name: str) -> Path:
    """Move a run or a sweep to the trash, and delete it in MLflow; returns where its folder is now.

    Args:
        name: the folder of a run, or the name of a run's folder, or of a sweep, or SWEEP/RUN.

    Raises:
        UserError: there is none of this name, it is running, or the tracking store does not answer (nothing is moved then).
    """
    folder = _found(outputs, name)
    runs = [folder] if (folder / "status.json").exists() else [path.parent for path in folder.glob("*/status.json")]
    for run in runs:
        if held(run):
            raise UserError(f"{run.name} is running; stop it first.")
    from foura.tracking.store import delete_runs

    sweep = "" if folder.parent.name != "sweeps" else folder.name
    ids = [run_id for run in runs if isinstance(run_id := run_status(run).get("run_id"), str)]
    delete_runs(outputs, ids, sweep)
    target = place(outputs, f"{TRASH}/{'sweeps' if sweep else 'runs'}/{folder.name}")
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}-{number}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, target)  # copies where the two are on different disks
    return target


def _found(outputs: Path, name: str) -> Path:
    """The folder of a run or sweep in `outputs`."""
    for path in (part(outputs, "sweeps") / name, part(outputs, "runs") / name, Path.cwd() / name):
        folder = Path(os.path.normpath(path))
        parts = folder.relative_to(outputs).parts if folder.is_relative_to(outputs) else ()
        is_sweep = parts[:1] == ("sweeps",) and len(parts) == 2
        is_run = (parts[:1], len(parts)) in ((("sweeps",), 3), (("runs",), 2)) and (folder / "status.json").is_file()
        if folder.is_dir() and (is_sweep or is_run):
            return folder
    raise UserError(f"there is no run or sweep {name} in {outputs}; `foura status` lists them.")
