"""Read a sweep from the tracking store, as tables. Nothing else is read: a report needs no run folders."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from foura.errors import UserError, reason
from foura.escape import printable, redact
from foura.report.study import TESTED
from foura.schema import Config, defaults_since
from foura.tracking.artifacts import Artifacts
from foura.tracking.store import NOTE, artifacts_of, note, open_store
from foura.tracking.ui import base_address, set_view

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

ITEMS = ("train_items", "validation_items", "test_items")  # sizes of the splits; runs of older versions lack them
TAGS = (
    "state",
    "adapter",
    "transform",
    "gate",
    "backbone",
    "dataset",
    "rank",
    "alpha",
    "seed",
    "data_fingerprint",
    "key",
    "about",
    *ITEMS,
)
# columns that the report reads of a run's tables
TABLES = {"layers.csv": ("layer", "rank", "effective_rank", "gate_std"), "spectra.csv": ("layer", "index", "value")}
TABLES |= {"strengths.csv": ("strength",)}
KEPT_LOOKS = 50  # as many as a tag of MLflow holds
STATES = {"FINISHED": "finished", "KILLED": "interrupted", "RUNNING": "running", "FAILED": "failed"}


@dataclass(frozen=True)
class Look:
    """One report of a sweep: the number of finished runs that it saw, and the margins then declared."""

    finished: int
    margins: dict[str, float]


@dataclass
class Sweep:
    """A sweep's runs as they stand in the store.

    Attributes:
        runs: one row per compared run: run_id, name, state, the tags, "param:<key>" for its config, "<metric>" for its last
            values. tuning: the same of the tuning runs, which did not use the test data.
        tune: the keys whose best value is chosen on validation data.
        commands: those that started the sweep, each once, the last one last; none if unknown.
        margins: {key of the config's `margins`: value} as declared with the sweep.
        declared: the margins after each command that changed them. looks: earlier reports that saw other numbers of finished
            runs.
        ui: the address of MLflow's UI.
    """

    name: str
    client: MlflowClient
    artifacts: Artifacts
    parent_id: str
    experiment_id: str
    runs: pd.DataFrame
    tuning: pd.DataFrame
    tune: list[str]
    commands: list[str]
    margins: dict[str, float]
    looks: list[Look]
    ui: str
    declared: list[dict[str, float]] = field(default_factory=list)

    def history(self, run_id: str, metric: str) -> pd.Series:
        """The values of a metric by epoch (from 1)."""
        points = self.client.get_metric_history(run_id, metric)
        return pd.Series({point.step + 1: _measured(point.value) for point in points}, dtype=float).sort_index()

    def artifact(self, run_id: str, name: str, into: Path) -> Path | None:
        """Download an artifact of a run; None if the run has none of that name."""
        return self.artifacts.get(run_id, name, into)

    def tables(self, run_ids: Sequence[str], name: str) -> pd.DataFrame:
        """A CSV artifact of several runs, concatenated, with a column run_id."""
        parts = []
        with tempfile.TemporaryDirectory() as folder:
            for run_id in run_ids:
                into = Path(folder) / run_id
                into.mkdir()
                path = self.artifact(run_id, name, into)
                if path is not None:
                    parts.append(_table(path, name, run_id).assign(run_id=run_id))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def describe(self, lines: Sequence[str]) -> None:
        """Make the verdicts and the commands the description of the parent run, and give the sweep a view in the UI."""
        set_view(self.client, self.experiment_id, self.name)
        self.client.set_tag(self.parent_id, NOTE, note(self.commands, lines))

    def look(self) -> list[Look]:
        """Record this report on the parent run, unless no run has finished since the last one; returns all looks."""
        now = Look(int((self.runs["state"] == "finished").sum()), self.margins)
        if not self.looks or self.looks[-1] != now:
            self.looks.append(now)
            self.client.set_tag(self.parent_id, "looks", json.dumps([vars(look) for look in self.looks[-KEPT_LOOKS:]]))
        return self.looks


def load_sweep(outputs: Path, name: str) -> Sweep:
    """Load the sweep of that name.

    Raises:
        UserError: the store has no such sweep (the message lists those that it has), or the sweep has no runs.
    """
    client, experiment_id = open_store(outputs)
    parents = _search(client, experiment_id, "tags.role = 'sweep'")
    named = [run for run in parents if run.data.tags.get("sweep") == name]
    if not named:
        known = sorted({run.data.tags.get("sweep", "") for run in parents})
        raise UserError(f"there is no sweep {name} in the tracking store. Sweeps there: {', '.join(known) or 'none'}.")
    children = _search(client, experiment_id, f"tags.sweep = '{name}' and tags.role = 'run'")
    if not children:
        raise UserError(f"the sweep {name} has no runs yet.")
    runs = pd.DataFrame([_row(run) for run in children])
    order = [column for column in ("adapter", "rank", "seed", "name") if column in runs]
    runs = runs.sort_values(order, ignore_index=True)
    tested = runs[TESTED] != "False"
    tags = named[0].data.tags
    return Sweep(
        name=name,
        client=client,
        artifacts=artifacts_of(outputs, client),
        parent_id=named[0].info.run_id,
        experiment_id=experiment_id,
        runs=runs[tested].reset_index(drop=True),
        tuning=runs[~tested].reset_index(drop=True),
        tune=[key for key in tags.get("tune", "").split(",") if key],
        commands=[_shown(line) for line in tags.get("command", "").splitlines()],
        margins=_margins(tags.get("margins") or "{}", named[0].info.run_id),
        looks=_looks(tags.get("looks") or "[]", named[0].info.run_id),
        ui=base_address(outputs),
        declared=[_margins(line, named[0].info.run_id) for line in tags.get("declared", "").splitlines()],
    )


def _search(client: MlflowClient, experiment_id: str, query: str) -> list[Run]:
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], filter_string=query, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _shown(text: str) -> str:
    """Text of the store for a page: anybody who writes to the store can have chosen it."""
    return printable(redact(text))


def _row(run: Run) -> dict[str, Any]:
    """A run as a row of the table; missing ranks and seeds are 0."""
    tags = {key: _shown(value) for key, value in run.data.tags.items()}
    row: dict[str, Any] = {"run_id": run.info.run_id, "name": _shown(run.info.run_name)}
    row |= {tag: tags[tag] for tag in TAGS if tag in tags}
    row["state"] = tags.get("state") or STATES.get(run.info.status, run.info.status.lower())
    row["commit"] = tags.get("mlflow.source.git.commit", "")
    row["versions"] = tags.get("versions", "")
    # a run of before a key was added had what is now its default
    row |= {f"param:{key}": str(value) for key, value in defaults_since(Config).items()}
    row |= {f"param:{key}": _shown(value) for key, value in run.data.params.items()}
    row |= {key: _measured(value) for key, value in run.data.metrics.items()}
    for number in ("rank", "seed", *(key for key in ITEMS if key in row)):
        try:
            row[number] = int(row.get(number, 0))
        except ValueError:
            raise _wrong(run.info.run_id, number, str(row[number])) from None
    return row


def _measured(value: float) -> float:
    """A metric as the run measured it: MLflow's databases hold the largest float in place of an infinity."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _wrong(run_id: str, tag: str, value: str) -> UserError:
    """The sentence for a tag that no run writes: anybody who writes to the store can have set it."""
    return UserError(
        f"the run {run_id} has the tag {tag}={value[:40]!r} in the tracking store, which no run writes: correct it in MLflow, "
        "or delete the run there."
    )


def _margins(text: str, run_id: str) -> dict[str, float]:
    try:
        found = json.loads(text)
        return {str(key): float(value) for key, value in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _wrong(run_id, "margins", text) from None


def _looks(text: str, run_id: str) -> list[Look]:
    try:
        return [Look(int(look["finished"]), dict(look["margins"])) for look in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _wrong(run_id, "looks", text) from None


def _table(path: Path, name: str, run_id: str) -> pd.DataFrame:
    """A CSV artifact with numbers in every column but the names of layers.

    Raises:
        UserError: it is another kind of file.
    """
    try:
        table = pd.read_csv(path)
        missing = set(TABLES.get(name, ())) - set(table)
        if missing:
            raise ValueError(f"it has no column {sorted(missing)[0]}")
        if name in TABLES:
            numbers = [column for column in table if column != "layer"]
            table = table.assign(**{column: pd.to_numeric(table[column]) for column in numbers})
    except ValueError as error:  # pandas' errors of parsing are such
        raise UserError(f"the artifact {name} of the run {run_id} is not a table of a run: {reason(error)}.") from None
    return table
