"""`foura report SWEEP`: one self-contained page and CSV files, from the tracking store alone."""

import datetime
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from foura.analysis.statistics import LEVEL, POWER
from foura.escape import cell
from foura.metrics import CURVE, shown
from foura.report import compare, plots
from foura.report.collect import Sweep, load_sweep
from foura.report.compare import Measure, Study

UI = "http://127.0.0.1:5000"
ARTIFACT_RUNS = 60  # runs of a study whose layer tables are read; more of them only make the means smoother
GRIDS = 4  # runs whose pictures are shown


@dataclass
class Shown:
    """A table as the page shows it: every cell is text."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


def report(outputs: Path, name: str, into: Path | None = None) -> Path:
    """Make the report of a sweep and log it to the sweep's parent run; returns the page's path.

    Args:
        into: the folder of report.html and its CSV files; None: outputs/sweeps/<name>/report.

    Raises:
        UserError: no such sweep, or no run of it that has finished.
    """
    sweep = load_sweep(outputs, name)
    folder = into or outputs / "sweeps" / name / "report"
    folder.mkdir(parents=True, exist_ok=True)
    found = compare.studies(sweep.runs, sweep.tune)
    sections = [_section(sweep, study, folder, f"{n}-" if len(found) > 1 else "") for n, study in enumerate(found, 1)]
    _csv(sweep.runs, folder / "runs.csv")
    states = sweep.runs["state"].value_counts()
    template = jinja2.Template(files("foura.report").joinpath("page.html").read_text(encoding="utf-8"), autoescape=True)
    page = template.render(
        name=name,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        counts=f"{len(sweep.runs)} runs: " + ", ".join(f"{count} {state}" for state, count in states.items()),
        studies=sections,
        provenance=_provenance(sweep),
        runs=_runs(sweep),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    for file in sorted(folder.iterdir()):
        sweep.artifacts.log(sweep.parent_id, file, "report")
    return path


def _section(sweep: Sweep, study: Study, folder: Path, prefix: str) -> dict[str, Any]:
    answers, tables = [], []
    some = study.finished["run_id"].iloc[:: max(1, math.ceil(len(study.finished) / ARTIFACT_RUNS))].tolist()
    layers = sweep.tables(some, "layers.csv")
    compare.with_layers(study, layers)
    means = compare.summary(study)
    _csv(means, folder / f"{prefix}summary.csv")
    measured = [study.quality, study.gap, *study.extra]
    for measure in measured:
        table = compare.comparisons(study, measure)
        if not table.empty:
            _csv(table, folder / f"{prefix}comparisons-{_file(measure)}.csv")
            tables.append(_shown(table, f"{measure.label}: differences from {study.baseline}", COMPARED))
        if measure in study.answered:
            answers.append(compare.answer(table, measure, study))
        grown = compare.slopes(study, measure)
        if not grown.empty:
            _csv(grown, folder / f"{prefix}slopes-{_file(measure)}.csv")
            assert study.x is not None
            tables.append(
                _shown(grown, f"{measure.label}: change each time {study.x.split('.')[-1].replace('_', ' ')} doubles")
            )
    tables.insert(0, _shown(means, "Means over seeds", MEANS))
    if not study.tuned.empty:
        _csv(study.tuned, folder / f"{prefix}tuned.csv")
        tables.insert(1, _shown(study.tuned, "Tuned values", "Picked by the mean over seeds on validation data."))
    figures = _figures(sweep, study, means, layers, folder, prefix)
    return {"title": study.title, "answers": answers, "method": METHOD, "figures": figures, "tables": tables}


METHOD = (
    f"Pairs of runs of one seed share their data, their order and their start. Differences: mean over seeds with a BCa "
    f"bootstrap interval; verdicts by a paired t-test at {LEVEL:g}, corrected for the number of comparisons in the table "
    f"(Benjamini and Hochberg). What so many seeds could have shown is the difference found in {POWER:.0%} of cases, at the "
    f"level divided by the number of comparisons. Test data was used once, for the epoch selected on validation data."
)
MEANS = (
    "± is the standard deviation over seeds. Runs that ran at the same time slowed each other: their step times are good for "
    "an order of magnitude (make bench measures cost)."
)
COMPARED = "q: p corrected for the number of rows. effect: difference over its spread (Cohen's d of the pairs)."


def _figures(
    sweep: Sweep, study: Study, means: pd.DataFrame, layers: pd.DataFrame, folder: Path, prefix: str
) -> list[dict[str, str]]:
    histories = _histories(sweep, study)
    _csv(histories, folder / f"{prefix}curves.csv")
    some = layers["run_id"].unique().tolist() if not layers.empty else study.finished["run_id"].tolist()[:ARTIFACT_RUNS]
    values, strengths = sweep.tables(some, "spectra.csv"), sweep.tables(some, "strengths.csv")
    for table, file in ((layers, "layers"), (strengths, "strengths")):
        if not table.empty:
            _csv(table, folder / f"{prefix}{file}.csv")
    measures = [study.quality, study.gap, *study.extra]
    metric = study.selection.column.split("/")[1]
    made = [
        ("means", "Means with 95 % intervals over seeds; small dots are runs.", plots.against_x(study, measures[:3])),
        ("more", "Further measures, as above.", plots.against_x(study, measures[3:]) if measures[3:] else None),
        (
            "curves",
            "Learning curves: validation, and the same evaluation of a fixed part of the training data.",
            plots.curves(study, histories, metric),
        ),
        (
            "epochs",
            "Further measures by epoch (pictures against validation data; ranks that gates open).",
            plots.by_epoch(study, _further(sweep, study)),
        ),
        ("cost", "Quality against cost; the grey line joins what nothing beats in both.", plots.pareto(study, means)),
        (
            "strength",
            "What pictures are worth as the adapter's strength grows.",
            plots.by_strength(study, strengths),
        ),
        ("spectra", "Spectra of the updates, over layers and runs.", plots.spectra(study, values)),
        ("gates", "Open ranks of the gates, of those there are.", plots.gate_map(study, layers)),
    ]
    figures = []
    for name, caption, data in made:
        if data is not None:
            (folder / f"{prefix}{name}.svg").write_bytes(data)
            figures.append({"caption": caption, "source": plots.image(data, "svg+xml")})
    return figures + _grids(sweep, study)


def _histories(sweep: Sweep, study: Study) -> pd.DataFrame:
    """run_id, epoch, train, val, gap of the selection metric, for every finished run."""
    name = study.selection.column.split("/")[1]
    parts = []
    for run_id in study.finished["run_id"]:
        columns = {key: sweep.history(run_id, f"{part}/{name}") for key, part in PARTS.items()}
        parts.append(pd.DataFrame(columns).rename_axis("epoch").reset_index().assign(run_id=run_id))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _further(sweep: Sweep, study: Study) -> pd.DataFrame:
    """run_id, measure, epoch, value of the metrics that only some tasks or adapters have."""
    parts = []
    for metric in shown(CURVE):
        measure = metric.column
        if measure in study.finished:
            for run_id in study.finished.dropna(subset=[measure])["run_id"]:
                values = sweep.history(run_id, measure).rename_axis("epoch").rename("value").reset_index()
                parts.append(values.assign(run_id=run_id, measure=measure))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


PARTS = {"train": "train_eval", "val": "val", "gap": "gap"}


def _grids(sweep: Sweep, study: Study) -> list[dict[str, str]]:
    """The pictures that a run of each adapter drew."""
    import tempfile

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _, run in study.finished.drop_duplicates("adapter").head(GRIDS).iterrows():  # some may have none yet
            path = sweep.artifact(run["run_id"], "samples.png", Path(folder))
            if path is not None:
                found.append(
                    {"caption": f"Pictures of {run['name']}.", "source": plots.image(path.read_bytes(), "png")}
                )
    return found


def _provenance(sweep: Sweep) -> Shown:
    def distinct(column: str) -> str:
        if column not in sweep.runs:
            return "unknown"
        values = sorted({str(value) for value in sweep.runs[column].dropna()} - {""})
        return ", ".join(values[:6]) + (f" and {len(values) - 6} more" if len(values) > 6 else "") or "unknown"

    rows = [
        ["command", sweep.command or "unknown"],
        ["code (git commit)", distinct("commit")],
        ["versions", distinct("versions")],
        ["data fingerprints", distinct("data_fingerprint")],
        ["tracking", f"experiment {sweep.experiment_id}, parent run {sweep.parent_id}"],
    ]
    return Shown("", ["", ""], rows)


def _runs(sweep: Sweep) -> Shown:
    columns = [c for c in ("state", "adapter", "rank", "seed", "test/acc", "test/loss", "best/loss") if c in sweep.runs]
    rows = []
    for row in sweep.runs.to_dict("records"):
        link = f"{UI}/#/experiments/{sweep.experiment_id}/runs/{row['run_id']}"
        rows.append([(row["name"], link), *(_cell(row[column]) for column in columns)])
    return Shown("", ["run", *columns], rows)


def _shown(table: pd.DataFrame, title: str, note: str = "") -> Shown:
    rows = [[_cell(value) for value in row] for row in table.to_numpy(dtype=object)]
    return Shown(title, [str(column) for column in table.columns], rows, note)


def _csv(table: pd.DataFrame, path: Path) -> None:
    safe = table.rename(columns=cell)
    texts = safe.select_dtypes(exclude="number").columns
    safe.assign(**{name: safe[name].map(cell) for name in texts}).to_csv(path, index=False, float_format="%.6g")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 or (value == int(value) and abs(value) >= 1) else f"{value:.4g}"
    return str(value)


def _file(measure: Measure) -> str:
    return measure.column.replace("/", "_")
