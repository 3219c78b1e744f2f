"""The tables of a report's page: numbers as text, with mean and spread in one cell."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from foura.atomic import write_text
from foura.escape import cell
from foura.metrics import COST, UPDATE, shown
from foura.report.collect import Sweep
from foura.report.compare import OTHER_DATA, STATES
from foura.report.rounding import decimals, fixed, plain, signed, with_spread
from foura.report.study import Measure, Study, name_of
from foura.report.verdicts import places_of
from foura.tracking.ui import run_address, runs_address


@dataclass
class Shown:
    """A table as the page shows it: every cell is text, or (text, address) for a link."""

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    note: str = ""


def means_table(study: Study, means: pd.DataFrame) -> Shown:
    """Quality, gap and the other measures by adapter and condition. means: of `compare.summary`."""
    measures = (study.quality, study.selection, study.gap, *study.extra)
    states = [state for state in STATES if state in means]
    columns = [*_keys(study), "seeds", *states, *(measure.label for measure in measures), "final − best val loss"]
    table = Shown("Means over seeds", columns, note="± is the standard deviation over seeds.")
    for row in means.to_dict("records"):
        cells = [plain(row[key]) for key in ("adapter", *study.conditions, "seeds", *states)]
        cells += [_mean(row, measure, measure.item(study.finished)) for measure in measures]
        table.rows.append([*cells, fixed(row["final − best val loss"], 3)])
    return table


def cost_table(study: Study, means: pd.DataFrame) -> Shown:
    """The cost of training, by adapter and condition."""
    note = (
        "Runs at the same time slow each other, so that step times are good for an order of magnitude; make bench measures "
        "cost."
    )
    return _plain_table("Cost", study, means, [metric.heading for metric in shown(COST)], note)


def updates_table(study: Study, means: pd.DataFrame) -> Shown:
    """Norm, rank and spectrum of the updates, by adapter and condition."""
    headings = list(dict.fromkeys(metric.heading for metric in shown(UPDATE)))
    return _plain_table("Updates ΔW", study, means, headings, "Means over layers and seeds.")


def differences_table(study: Study, measure: Measure, table: pd.DataFrame) -> Shown:
    """The comparisons of a measure with the baseline. table: of `compare.comparisons`."""
    columns = [
        *_keys(study),
        "difference",
        "interval",
        "with test items",
        "p, adjusted",
        "detectable",
        "δ",
        "seeds",
        "to decide",
        "verdict",
    ]
    note = (
        "Intervals and p hold together for all rows. Detectable: the true difference that these seeds find in 4 of 5 cases. "
        "To decide: about how many seeds would."
    )
    shown_table = Shown(f"{measure.label}: differences from {study.baseline}", columns, note=note)
    for row in table.to_dict("records"):
        places = places_of(row)
        bounds = f"{signed(row['low'], places)} to {signed(row['high'], places)}"
        shown_table.rows.append(
            [
                *(plain(row[key]) for key in ("adapter", *study.conditions)),
                signed(row["difference"], places),
                bounds,
                _bounds(row["items_low"], row["items_high"], places),
                _p(row["p_adjusted"]),
                fixed(row["detectable"], places),
                fixed(row["margin"], max(places, decimals(row["margin"]) if row["margin"] < 1 else 0)),
                plain(row["seeds"]) + (f" (not {apart})" if (apart := _apart(row)) else ""),
                "> 1000" if row["needed"] == float("inf") else fixed(row["needed"], 0),
                row["verdict"],
            ]
        )
    return shown_table


def slopes_table(study: Study, measure: Measure, table: pd.DataFrame) -> Shown:
    """Change of a measure per doubling of the x axis. table: of `compare.slopes`."""
    assert study.x is not None
    names = ["adapter", *(name_of(key) for key in study.facets)]
    note = "Intervals hold together for all rows."
    columns = [*names, "per doubling", "interval", "seeds"]
    shown_table = Shown(f"{measure.label}: change each time {name_of(study.x)} doubles", columns, note=note)
    for row in table.to_dict("records"):
        places = decimals((row["high"] - row["low"]) / 2)
        cells = [plain(row[key]) for key in ("adapter", *study.facets)]
        bounds = f"{signed(row['low'], places)} to {signed(row['high'], places)}"
        shown_table.rows.append([*cells, signed(row["per doubling"], places), bounds, plain(row["seeds"])])
    return shown_table


def tuned_table(study: Study) -> Shown:
    """The values chosen for tuned keys."""
    rows = [[plain(value) for value in row] for row in study.tuned.to_numpy(dtype=object)]
    columns = [name_of(str(column)) for column in study.tuned.columns]
    return Shown("Tuned values", columns, rows, "Chosen by the mean over tuning seeds on validation data.")


def provenance_table(sweep: Sweep) -> Shown:
    """Command, code, versions and data of the runs."""

    def distinct(column: str) -> str:
        if column not in sweep.runs:
            return "unknown"
        values = sorted({str(value) for value in sweep.runs[column].dropna()} - {""})
        return ", ".join(values[:6]) + (f" and {len(values) - 6} more" if len(values) > 6 else "") or "unknown"

    rows: list[list[Any]] = [
        *(["command", command] for command in sweep.commands or ["unknown"]),
        ["code (git commit)", distinct("commit")],
        ["versions", distinct("versions")],
        ["data and backbone", distinct("about")],
        ["data fingerprints", distinct("data_fingerprint")],
        ["tracking", (f"parent run {sweep.parent_id} in MLflow", _in_ui(sweep, sweep.parent_id))],
        ["all runs in MLflow, while foura ui runs", (_all(sweep), _all(sweep))],
    ]
    return Shown("", ["", ""], rows)


def _in_ui(sweep: Sweep, run_id: str) -> str:
    return run_address(sweep.ui, sweep.experiment_id, run_id)


def _all(sweep: Sweep) -> str:
    return runs_address(sweep.ui, sweep.experiment_id, sweep.name)


def runs_table(sweep: Sweep) -> Shown:
    """All runs, each with a link to it in the MLflow UI."""
    columns = [c for c in ("state", "adapter", "rank", "seed", "test/acc", "test/loss", "best/loss") if c in sweep.runs]
    table = Shown("", ["run", *columns])
    for row in sweep.runs.to_dict("records"):
        table.rows.append([(row["name"], _in_ui(sweep, row["run_id"])), *(plain(row[column]) for column in columns)])
    return table


def _keys(study: Study) -> list[str]:
    return ["adapter", *(name_of(key) for key in study.conditions)]


def _mean(row: dict[str, Any], measure: Measure, item: float) -> str:
    return with_spread(row[measure.label], row[f"± {measure.label}"], item)


def _plain_table(title: str, study: Study, means: pd.DataFrame, headings: list[str], note: str) -> Shown:
    have = [heading for heading in headings if heading in means and means[heading].notna().any()]
    rows = [[plain(row[key]) for key in ("adapter", *study.conditions, *have)] for row in means.to_dict("records")]
    return Shown(title, [*_keys(study), *have], rows if have else [], note)


def _bounds(low: float, high: float, places: int) -> str:
    return "–" if low != low else f"{signed(low, places)} to {signed(high, places)}"


def _apart(row: dict[str, Any]) -> str:
    """The seeds that are no pairs."""
    return ", ".join(filter(None, (row["unpaired"], row.get(OTHER_DATA, ""))))


def _p(value: float) -> str:
    return "–" if value != value else "< 0.001" if value < 0.001 else fixed(value, 3)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, that a spreadsheet opens without computing anything in it."""
    safe = table.rename(columns=cell)
    texts = safe.select_dtypes(exclude="number").columns
    shown = safe.assign(**{name: safe[name].map(cell) for name in texts})
    write_text(path, shown.to_csv(index=False, float_format="%.6g"))
