"""The studies of a sweep: comparable runs, the conditions that they differ in, and the measures that judge them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from foura.families import FAMILIES
from foura.metrics import ANSWER, COMPARED, EPOCH, METRICS, UPDATE, Metric, shown
from foura.report.conditions import conditions_of, numeric, unused_by
from foura.report.tuning import hopeless, pick

BASELINES = ("lora", "foura_dct", "head")  # the baseline is the first of these that a study has
TESTED = "param:evaluation.test"  # "False": a tuning run
LAYERS = "layers/"  # prefix of metrics that are means over layers of a column of layers.csv


@dataclass(frozen=True)
class Measure:
    """A metric in one of its columns: on test data, on validation data, or its gap.

    Attributes:
        margin: δ in the measure's unit; margin_share: the same as a share of the baseline's value in the column share_of.
            Both None: no margin is declared.
        split: the split whose items it counts; "" if it is not a count.
    """

    column: str
    label: str
    more_is_better: bool
    margin: float | None = None
    margin_share: float | None = None
    share_of: str = ""
    split: str = ""

    def item(self, runs: pd.DataFrame) -> float:
        """One item of the split, as a share; 0 if the measure is not a count, nan if the size of the split is unknown."""
        column = f"{self.split}_items"
        if not self.split:
            return 0.0
        return float(1 / runs[column].min()) if column in runs else math.nan


@dataclass
class Study:
    """The comparable runs of one backbone and one dataset.

    Attributes:
        runs: all of them, with the tuned values if a key is tuned. finished: those of `runs` that finished.
        conditions: the keys that vary beside adapter and seed, those with numbers first.
        quality: the measure on test data that adapters are judged by.
        selection: the validation measure that picked the epochs and the tuned values.
        gap: the measure of overfitting. extra: further measures on test data that the runs have.
        tuned: the chosen values, one row per adapter and condition; empty if nothing is tuned. lost: adapters and conditions
            in which no run can be chosen, as all of them diverged or failed.
        adapters: the baseline first. unused: conditions that the baseline has no use for, so that its runs are of all their
            values. derived: keys that vary within an adapter and follow another one.
    """

    title: str
    runs: pd.DataFrame
    finished: pd.DataFrame
    conditions: list[str]
    quality: Measure
    selection: Measure
    gap: Measure
    extra: list[Measure]
    tuned: pd.DataFrame
    lost: pd.DataFrame
    baseline: str
    adapters: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)

    def baseline_in(self, condition: Mapping[str, Any]) -> pd.DataFrame:
        """The finished runs of the baseline that those of a condition are compared with."""
        rows = self.finished[self.finished["adapter"] == self.baseline]
        for key, value in condition.items():
            if key not in self.unused:
                rows = rows[rows[key].isna() if pd.isna(value) else rows[key] == value]
        return rows

    @property
    def measures(self) -> list[Measure]:
        """All that is compared between adapters, the quality first."""
        return [self.quality, self.gap, *self.extra]

    @property
    def answered(self) -> list[Measure]:
        """The measures whose verdicts stand at the top of the page."""
        answers = {metric.column for metric in shown(ANSWER)}
        return [self.quality, self.gap, *(measure for measure in self.extra if measure.column in answers)]

    @property
    def x(self) -> str | None:
        """The condition of the x axis: the first one, if it has at least two values and they are numbers."""
        first = self.conditions[0] if self.conditions else None
        if first and numeric(self.finished[first]) and self.finished[first].nunique() > 1:
            return first
        return None

    @property
    def facets(self) -> list[str]:
        """The conditions beside the x axis."""
        return [key for key in self.conditions if key != self.x]


def studies(
    runs: pd.DataFrame,
    tune: Sequence[str],
    margins: Mapping[str, float] | None = None,
    tuning: pd.DataFrame | None = None,
) -> list[Study]:
    """One study for each backbone and dataset that has a finished run.

    Args:
        tune: keys whose best value is chosen on validation data. margins: those declared with the sweep.
        tuning: the runs that choose it; None or empty: the compared runs themselves.
    """
    found = []
    for (backbone, dataset), part in runs.groupby(["backbone", "dataset"], sort=True) if len(runs) else ():
        if (part["state"] == "finished").any():
            by = pd.DataFrame() if tuning is None or tuning.empty else tuning
            mine = by if by.empty else by[(by["backbone"] == backbone) & (by["dataset"] == dataset)]
            # without the metrics and keys that only runs of the other studies have
            title, own = _title(backbone, dataset), part.dropna(axis="columns", how="all").reset_index(drop=True)
            found.append(_study(title, own, mine.reset_index(drop=True), tune, margins or {}))
    return [study for study in found if len(study.finished)]


def missing(every: pd.DataFrame, found: Sequence[Study]) -> list[str]:
    """The backbones and datasets of the runs that have no study, with the states of their runs, a sentence each.

    Args:
        every: the compared runs and the tuning runs.
    """
    titles, lines = {study.title for study in found}, []
    for (backbone, dataset), part in every.groupby(["backbone", "dataset"], sort=True) if found else ():
        if (title := _title(backbone, dataset)) not in titles:
            lines.append(f"Nothing to compare for {title}: {states_of(part)}.")
    return lines


def states_of(runs: pd.DataFrame) -> str:
    """The number of runs in each state: "3 diverged, 1 failed"."""
    return ", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().items())


def _title(backbone: str, dataset: str) -> str:
    return f"{backbone} on {dataset}"


def with_layers(study: Study, layers: pd.DataFrame) -> None:
    """Add the means over layers of the columns of layers.csv to the study's runs."""
    columns = [name for metric in shown(UPDATE) if (name := metric.key.removeprefix(LAYERS)) in layers]
    if columns:
        means = layers.groupby("run_id")[columns].mean().add_prefix(LAYERS)
        study.runs, study.finished = (runs.join(means, on="run_id") for runs in (study.runs, study.finished))


def by_condition(rows: pd.DataFrame, keys: Sequence[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """(values of the keys, the rows that have them), sorted."""
    if not keys:
        return [({}, rows)]
    groups = rows.groupby(list(keys), sort=True, dropna=False)
    return [(dict(zip(keys, values, strict=True)), part) for values, part in groups]


def name_of(key: str) -> str:
    """The name of a condition in tables and figures: the last part of its key."""
    return key.split(".")[-1].replace("_", " ")


def in_words(condition: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The values of the keys as in "rank 4, lr 0.001"; "" without keys."""
    return ", ".join(f"{name_of(key)} {_short(condition[key])}" for key in keys)


def in_cell(row: Mapping[str, Any], study: Study) -> str:
    """An adapter in a condition, as in "foura at rank 4, lr 0.001"."""
    where = in_words(row, study.conditions)
    return f"{row['adapter']}{f' at {where}' if where else ''}"


def judged_by(runs: pd.DataFrame) -> tuple[Metric, Metric]:
    """(the metric that judges the runs on test data, the one that they have for every epoch)."""
    name = runs["param:backbone.family"].iloc[0] if "param:backbone.family" in runs else ""
    if name not in FAMILIES:  # runs of another version
        return METRICS["loss"], METRICS["loss"]
    chosen = runs["param:dataset.format"].iloc[0] if "param:dataset.format" in runs else None
    return FAMILIES[name].headline(chosen), FAMILIES[name].curve(chosen)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _study(
    title: str, runs: pd.DataFrame, tuning: pd.DataFrame, tune: Sequence[str], margins: Mapping[str, float]
) -> Study:
    headline, curve = judged_by(runs)
    if headline.column not in runs:
        headline = curve
    quality = _on_test(headline, margins)
    selection = _measure(curve, margins, f"best/{curve.key}", f"val {curve.label}", split="validation")
    gap = _measure(
        curve,
        margins,
        f"final/gap_{curve.key}",
        f"gap in {curve.label}",
        more_is_better=False,
        share_of=selection.column,
        split="validation",
    )
    for column in (quality.column, selection.column, gap.column, "best/loss", "final/loss"):
        if column not in runs:  # no run has it, as in a store that was not told everything
            runs[column] = math.nan
    extra = [_on_test(other, margins) for other in shown(COMPARED) if other.column in runs and other != headline]
    # with the tuning runs, as of each condition only one tuned value may have been compared
    both = runs if tuning.empty else pd.concat([runs, tuning], ignore_index=True).drop(columns=TESTED)
    conditions, tuned_keys, derived = conditions_of(both, tune)
    for key in [*conditions, *tuned_keys]:
        _add_column(key, both, (runs, tuning))
    score = selection.column, selection.label, selection.more_is_better
    # before the values are chosen, by which all runs of an adapter may go
    adapters = list(dict.fromkeys(both["adapter"]))
    baseline = next((name for name in BASELINES if name in adapters), adapters[0])
    lost = hopeless(runs if tuning.empty else tuning, ["adapter", *conditions]) if tuned_keys else pd.DataFrame()
    tuned, runs = pick(runs, tuning, conditions, tuned_keys, score)
    adapters = [name for name in adapters if name == baseline or name in set(runs["adapter"])]
    adapters.sort(key=lambda name: name != baseline)  # stable: the others stay in order
    order = runs["adapter"].map(adapters.index).sort_values(kind="stable").index
    runs = runs.loc[order].reset_index(drop=True)
    finished = runs[runs["state"] == "finished"].copy()
    conditions.sort(key=lambda key: not (numeric(finished[key]) and finished[key].nunique() > 1))
    unused = unused_by(runs[runs["adapter"] == baseline], conditions)
    return Study(
        title,
        runs,
        finished,
        conditions,
        quality,
        selection,
        gap,
        extra,
        tuned,
        lost,
        baseline,
        adapters,
        unused,
        derived,
    )


def _add_column(key: str, both: pd.DataFrame, tables: Sequence[pd.DataFrame]) -> None:
    """Give tables the values of a key as a column of its name: numbers if those of all tables are."""
    column = both.get(f"param:{key}", both.get(key))
    assert column is not None  # it varies
    numbers = numeric(column)  # of both tables: a value has to be the same one in either
    for table in tables:
        column = table.get(f"param:{key}", table.get(key))
        if column is not None:
            table[key] = pd.to_numeric(column) if numbers else column


def _on_test(metric: Metric, margins: Mapping[str, float]) -> Measure:
    """The metric on test data; called so if it is also measured on validation data after every epoch."""
    label = f"test {metric.label}" if EPOCH in metric.shown else metric.label
    return _measure(metric, margins, metric.column, label, split="test")


def _measure(
    metric: Metric,
    margins: Mapping[str, float],
    column: str,
    label: str,
    more_is_better: bool | None = None,
    share_of: str = "",
    split: str = "",
) -> Measure:
    """The measure of a metric in a column, with its declared or default margin."""
    declared = margins.get(metric.margin_key)
    return Measure(
        column=column,
        label=label,
        more_is_better=metric.greater_is_better if more_is_better is None else more_is_better,
        margin=metric.margin if declared is None else declared,
        margin_share=metric.margin_share if declared is None else None,
        share_of=share_of or column,
        split=split if metric.counts_items else "",
    )
