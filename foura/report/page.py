"""`foura report SWEEP`: one self-contained page, its figures and its tables as CSV, from the tracking store alone."""

import datetime
import tempfile
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from foura.atomic import write_bytes, write_text
from foura.metrics import CURVE, METRICS, shown
from foura.report import compare, plots, tables, updates, verdicts
from foura.report.collect import Look, Sweep, load_sweep
from foura.report.forest import forest
from foura.report.overview import over_tasks, overview_figure, overview_lines, overview_note
from foura.report.study import Measure, Study, missing, states_of, studies, with_layers
from foura.report.style import Panel, image, on_page
from foura.tracking.parts import place

VERDICTS = "verdicts.txt"  # beside the page: its verdicts as plain text
TOLD = 12  # comparisons of a measure that are told one by one in it
ARTIFACT_RUNS = 60  # runs of a study whose layer tables are read, at least one of each adapter and condition
GRIDS = 4  # runs whose generated images are shown
PARTS = {"train": "train_eval", "val": "val"}
METHOD = (
    "Runs of one seed form pairs: they share their data, its order and their start. Intervals are Student's t intervals of "
    "the mean difference at 5 % divided by the number of comparisons in the table (Bonferroni). Better and worse: the "
    "interval excludes zero. Equivalent: two one-sided tests at the same level show the difference within the margin (the "
    "thick part of the line lies in the shaded band). Undecided: neither; the number of seeds that would decide is a rough "
    "guide. Test data was used once, for the epoch selected on validation data. How often this is wrong: docs/statistics.md."
)


@dataclass
class Figure:
    """The panels of one figure as the page shows them, and the caption below them."""

    caption: str
    panels: list[dict[str, str]] = field(default_factory=list)


def report(outputs: Path, name: str, into: Path | None = None) -> Path:
    """Make the report of a sweep and log it to the sweep's parent run; returns the page's path.

    Args:
        into: the folder of report.html, its figures and CSV files; None: outputs/sweeps/<name>/report.

    Raises:
        UserError: no such sweep, or a sweep without runs.
    """
    sweep = load_sweep(outputs, name)
    # in a folder of other people's, the report's could be a link to anywhere
    folder = into or place(outputs, f"sweeps/{name}/report")
    folder.mkdir(parents=True, exist_ok=True)
    found = studies(sweep.runs, sweep.tune, sweep.margins, sweep.tuning)
    looks = sweep.look()
    sections = [
        Section(sweep, study, folder, prefix).made(looks) for study, prefix in zip(found, prefixes(found), strict=True)
    ]
    overview = make_overview(found, folder)
    absent = missing(pd.concat([sweep.runs, sweep.tuning]), found)
    tables.write_csv(sweep.runs, folder / "runs.csv")
    if len(sweep.tuning):
        tables.write_csv(sweep.tuning, folder / "tuning.csv")
    template = jinja2.Template(files("foura.report").joinpath("page.html").read_text(encoding="utf-8"), autoescape=True)
    page = template.render(
        name=name,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        counts=_counts(sweep),
        nothing="" if sections else verdicts.nothing(sweep),
        absent=absent,
        overview=overview,
        studies=sections,
        method=METHOD,
        provenance=tables.provenance_table(sweep),
        runs=tables.runs_table(sweep),
    )
    told = [*_verdict_lines(overview, sections), *absent] or [verdicts.nothing(sweep)]
    write_text(folder / VERDICTS, "\n".join(told) + "\n")
    sweep.describe(told)
    path = folder / "report.html"
    write_text(path, page)
    for file in sorted(folder.iterdir()):
        sweep.artifacts.log(sweep.parent_id, file, "report")
    return path


def _verdict_lines(overview: dict[str, Any] | None, sections: list[dict[str, Any]]) -> list[str]:
    """The verdicts as plain text; of tables with many comparisons only the total."""
    lines = list(overview["lines"]) if overview else []
    for section in sections:
        lines += [section["title"]] if len(sections) > 1 else []
        for answer in section["answers"]:
            lines += [answer[0], *(f"  {line}" for line in answer[1 : TOLD + 1] if len(answer) <= TOLD + 1)]
        lines += [f"  {line}" for line in section["remarks"]]
    return lines


def _counts(sweep: Sweep) -> str:
    """The number of runs, by state, and of the tuning runs before them."""
    said = f"{len(sweep.runs)} runs: {states_of(sweep.runs)}"
    return said + (f"; before them {len(sweep.tuning)} tuning runs" if len(sweep.tuning) else "")


def prefixes(found: list[Study]) -> list[str]:
    """Of the names of each study's files: its number from 1 and a hyphen; nothing for the only one."""
    return [f"{number}-" for number in range(1, len(found) + 1)] if len(found) > 1 else [""] * len(found)


def make_overview(found: list[Study], folder: Path) -> dict[str, Any] | None:
    """The verdict over the tasks of several studies, and its files in `folder`; None if they share nothing."""
    table = over_tasks(found) if len(found) > 1 else pd.DataFrame()
    if table.empty:
        return None
    tables.write_csv(table, folder / "tasks.csv")
    panel = overview_figure(table, found)
    write_bytes(folder / "tasks.svg", panel.svg)
    figure = Figure("", [{"source": on_page(panel.svg), "alt": panel.alt}])
    return {"lines": overview_lines(table, found), "figure": figure, "note": overview_note(found)}


class Section:
    """The part of a page about one study; making it writes the study's CSV files and figures.

    Args:
        prefix: of the names of the files, where a sweep has several studies.
    """

    def __init__(self, sweep: Sweep, study: Study, folder: Path, prefix: str) -> None:
        self.sweep, self.study, self.folder, self.prefix = sweep, study, folder, prefix
        ids = _spread_over_conditions(study)
        self.layers, self.spectra, self.strengths, self.steps = (
            sweep.tables(ids, f"{name}.csv") for name in ("layers", "spectra", "strengths", "ranks_by_step")
        )
        with_layers(study, self.layers)
        self.means = compare.summary(study)
        items = sweep.tables(study.finished["run_id"].tolist(), "test_items.csv")
        self.compared = {measure.column: compare.comparisons(study, measure, items) for measure in study.measures}

    def made(self, looks: list[Look]) -> dict[str, Any]:
        """The study's part of page.html, by the names that the template uses."""
        study = self.study
        self._csv(self.means, "summary")
        quality = self.compared[study.quality.column]
        return {
            "title": study.title,
            "answers": [verdicts.answer(self.compared[m.column], m, study) for m in study.answered],
            "more": verdicts.more_seeds(quality, self.sweep, study),
            "remarks": [*verdicts.tuned(study), *verdicts.left_out(study)],
            "notes": [
                verdicts.margins(study),
                verdicts.coverage(study, quality),
                verdicts.repeated_looks(looks, self.sweep.declared),
            ],
            "forest": self._forest(),
            "quality": self._quality(),
            "means": tables.means_table(study, self.means),
            "curves": self._curves(),
            "cost": [self._figure("cost", plots.pareto(study, self.means), COST_CAPTION)],
            "cost_table": tables.cost_table(study, self.means),
            "updates": self._updates(),
            "gates": updates.gate_maps(study, self.layers)[1],
            "updates_table": tables.updates_table(study, self.means),
            "images": [*self._by_strength(), *self._images()],
            "numbers": self._numbers(),
        }

    def _forest(self) -> list[Figure]:
        figures = []
        for measure in self.study.answered:
            panels = forest(self.study, self.compared[measure.column], measure)
            figures.append(self._figure(f"forest-{_file(measure)}", panels, ""))
        return figures

    def _quality(self) -> list[Figure]:
        measures = self.study.measures
        return [self._figure(f"means-{_file(m)}", plots.by_measure(self.study, m), "") for m in measures]

    def _curves(self) -> list[Figure]:
        study, histories = self.study, self._histories()
        self._csv(histories, "curves")
        name = METRICS[study.selection.column.split("/")[1]].label
        caption = "Means over seeds. Dashed: the same evaluation of a fixed part of the training data."
        further = plots.further_curves(study, self._further())
        return [
            self._figure("curves", plots.curves(study, histories, name), caption),
            self._figure("epochs", further, "Further measures by epoch, means over seeds."),
        ]

    def _updates(self) -> list[Figure]:
        self._csv(self.layers, "layers")
        return [
            self._figure("spectra", updates.spectra(self.study, self.spectra), "Means over layers and runs."),
            self._figure("gates", updates.gate_maps(self.study, self.layers)[0], "Open ranks of the gated adapters."),
            self._figure("steps", updates.by_denoising_step(self.study, self.steps), "Means over layers and runs."),
        ]

    def _numbers(self) -> list[tables.Shown]:
        """The tables behind the figures, which the page folds away."""
        shown_tables = []
        for measure in self.study.measures:
            table = self.compared[measure.column]
            if not table.empty:
                self._csv(table, f"comparisons-{_file(measure)}")
                shown_tables.append(tables.differences_table(self.study, measure, table))
            slopes = compare.slopes(self.study, measure)
            if not slopes.empty:
                self._csv(slopes, f"slopes-{_file(measure)}")
                shown_tables.append(tables.slopes_table(self.study, measure, slopes))
        if not self.study.tuned.empty:
            self._csv(self.study.tuned, "tuned")
            shown_tables.insert(0, tables.tuned_table(self.study))
        return shown_tables

    def _by_strength(self) -> list[Figure]:
        self._csv(self.strengths, "strengths")
        panels = updates.by_strength(self.study, self.strengths)
        caption = "Image metrics against the adapter scale, means over seeds; the band covers all seeds."
        return [self._figure("strength", panels, caption)]

    def _images(self) -> list[Figure]:
        """The generated images of a run of each adapter."""
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for _, run in self.study.finished.drop_duplicates("adapter").head(GRIDS).iterrows():  # some may have none
                path = self.sweep.artifact(run["run_id"], "samples.png", Path(folder))
                if path is not None:
                    caption = f"Generated images of {run['name']}."
                    panels = [{"source": image(path.read_bytes(), "png"), "alt": caption}]
                    found.append(Figure(caption, panels))
        return found

    def _histories(self) -> pd.DataFrame:
        """run_id, epoch, train, val, gap of the selection metric, for every finished run."""
        metric = METRICS[self.study.selection.column.split("/")[1]]
        parts = []
        for run_id in self.study.finished["run_id"]:
            columns = {name: self.sweep.history(run_id, f"{part}/{metric.key}") for name, part in PARTS.items()}
            parts.append(pd.DataFrame(columns).rename_axis("epoch").reset_index().assign(run_id=run_id))
        found = pd.concat(parts, ignore_index=True)
        found.insert(3, "gap", metric.sign * (found["train"] - found["val"]))
        return found

    def _further(self) -> pd.DataFrame:
        """run_id, measure, epoch, value of the metrics that only some tasks or adapters have."""
        parts = []
        for metric in shown(CURVE):
            if metric.column in self.study.finished:
                for run_id in self.study.finished.dropna(subset=[metric.column])["run_id"]:
                    values = self.sweep.history(run_id, metric.column).rename_axis("epoch").rename("value")
                    parts.append(values.reset_index().assign(run_id=run_id, measure=metric.column))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def _figure(self, name: str, panels: list[Panel], caption: str) -> Figure:
        figure = Figure(caption)
        for panel in panels:
            write_bytes(self.folder / f"{self.prefix}{name}{panel.suffix}.svg", panel.svg)
            figure.panels.append({"source": on_page(panel.svg), "alt": panel.alt})
        return figure

    def _csv(self, table: pd.DataFrame, name: str) -> None:
        if not table.empty:
            tables.write_csv(table, self.folder / f"{self.prefix}{name}.csv")


COST_CAPTION = "Quality against cost; the grey line joins what nothing beats in both."


def _spread_over_conditions(study: Study) -> list[str]:
    """Ids of about ARTIFACT_RUNS finished runs, equally many of each adapter and condition and at least one."""
    groups = study.finished.groupby(["adapter", *study.conditions], sort=False, dropna=False)
    return groups.head(max(1, ARTIFACT_RUNS // groups.ngroups))["run_id"].tolist()


def _file(measure: Measure) -> str:
    return measure.column.replace("/", "_")
