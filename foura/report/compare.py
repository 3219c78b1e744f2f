"""From a sweep's runs to its numbers: the conditions compared, their means, and the verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from foura.analysis.statistics import compare, correct, mean_interval, slope
from foura.families import FAMILIES
from foura.metrics import ANSWER, COMPARED, COST, EPOCH, METRICS, UPDATE, Metric, shown

BASELINES = ("lora", "foura_dct", "head")  # what the others are compared with: the first that is there
PREFERRED = ("rank", "alpha", "dataset.limit", "dataset.label_noise", "adapter.lr", "dataset.epochs", "dataset.style")
LAYERS = "layers/"  # metrics that are means over layers, of the columns of a run's layers.csv


@dataclass(frozen=True)
class Measure:
    """A metric in one of its columns: on test data, on validation data, or its gap."""

    column: str
    label: str
    more_is_better: bool


def on_test(metric: Metric) -> Measure:
    """The metric on test data. One that every epoch has is called so, to tell it from its value on validation data."""
    label = f"test {metric.label}" if EPOCH in metric.shown else metric.label
    return Measure(metric.column, label, metric.greater_is_better)


@dataclass
class Study:
    """The comparable runs of one backbone and one dataset.

    Attributes:
        finished: their rows. conditions: the keys that vary beside adapter and seed; the first is the x axis.
        quality: what is compared on test data. selection: the validation metric that picked epochs and tuned values.
        gap: the measure of overfitting. extra: further measures on test data that the runs have.
        tuned: the values picked for tuned keys, a row an adapter and condition; empty where nothing was tuned.
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
    baseline: str
    adapters: list[str]

    @property
    def answered(self) -> list[Measure]:
        """The measures in the answer at the top of the page."""
        answers = {metric.column for metric in shown(ANSWER)}
        return [self.quality, self.gap, *(measure for measure in self.extra if measure.column in answers)]

    @property
    def x(self) -> str | None:
        """The condition of the x axis: the first one, where it is a number."""
        return self.conditions[0] if self.conditions and numeric(self.finished[self.conditions[0]]) else None


def studies(runs: pd.DataFrame, tune: Sequence[str]) -> list[Study]:
    """One study for each backbone and dataset among the runs that has a finished run."""
    found = []
    for (backbone, dataset), part in runs.groupby(["backbone", "dataset"], sort=True):
        if (part["state"] == "finished").any():
            found.append(_study(f"{backbone} on {dataset}", part.reset_index(drop=True), tune))
    return found


def with_layers(study: Study, layers: pd.DataFrame) -> None:
    """Give the study's runs their means over layers of what layers.csv says of the updates."""
    columns = [name for metric in shown(UPDATE) if (name := metric.key.removeprefix(LAYERS)) in layers]
    if columns:
        means = layers.groupby("run_id")[columns].mean().add_prefix(LAYERS)
        study.runs, study.finished = (runs.join(means, on="run_id") for runs in (study.runs, study.finished))


def summary(study: Study) -> pd.DataFrame:
    """A row for each adapter and condition: runs by state, then mean and spread over seeds of every measure."""
    rows = []
    keys = ["adapter", *study.conditions]
    for values, part in study.runs.groupby(keys, sort=False, dropna=False):
        row = dict(zip(keys, values, strict=True))
        done = part[part["state"] == "finished"]
        row["seeds"] = len(done)
        for state in ("diverged", "failed", "interrupted", "running"):
            if (study.runs["state"] == state).any():
                row[state] = int((part["state"] == state).sum())
        for measure in (study.selection, study.quality, *study.extra, study.gap):
            row[measure.label] = done[measure.column].mean()
            row[f"± {measure.label}"] = done[measure.column].std()
        row["final − best val loss"] = (done["final/loss"] - done["best/loss"]).mean()
        for metric in (*shown(COST), *shown(UPDATE)):
            if metric.column in study.runs:
                row[metric.heading] = done[metric.column].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def comparisons(study: Study, measure: Measure) -> pd.DataFrame:
    """Every other adapter against the baseline, condition by condition, paired by seed and corrected for their number."""
    cases: list[tuple[dict[str, Any], dict[int, float], dict[int, float]]] = []
    for condition, part in _by_condition(study):
        by_adapter = {name: rows.set_index("seed")[measure.column].dropna() for name, rows in part.groupby("adapter")}
        if study.baseline not in by_adapter:
            continue
        for adapter in study.adapters:
            if adapter != study.baseline and adapter in by_adapter:
                pair = by_adapter[adapter].to_dict(), by_adapter[study.baseline].to_dict()
                cases.append(({"adapter": adapter, **condition}, *pair))
    found = [compare(own, base, measure.more_is_better, tests=len(cases)) for _, own, base in cases]
    found = correct(found, measure.more_is_better)
    return pd.DataFrame([{**case[0], **one.__dict__} for case, one in zip(cases, found, strict=True)])


def slopes(study: Study, measure: Measure) -> pd.DataFrame:
    """How a measure grows each time the x axis doubles, a row an adapter, over the seeds that have every value of x."""
    if study.x is None or study.finished[study.x].nunique() < 2 or (study.finished[study.x] <= 0).any():
        return pd.DataFrame()
    rows = []
    for adapter, part in study.finished.groupby("adapter", sort=False):
        wide = part.pivot_table(index="seed", columns=study.x, values=measure.column).dropna()
        if len(wide.columns) >= 2 and len(wide) >= 1:
            mean, low, high = slope([float(x) for x in wide.columns], wide.to_numpy().tolist())
            rows.append({"adapter": adapter, "per doubling": mean, "low": low, "high": high, "seeds": len(wide)})
    return pd.DataFrame(rows)


def intervals(study: Study, measure: Measure) -> pd.DataFrame:
    """Mean and interval over seeds of a measure, a row for each adapter and condition."""
    keys = ["adapter", *study.conditions]
    rows = []
    for values, part in study.finished.groupby(keys, sort=False, dropna=False):
        mean, low, high = mean_interval(part[measure.column].dropna().tolist())
        rows.append({**dict(zip(keys, values, strict=True)), "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def answer(table: pd.DataFrame, measure: Measure, study: Study) -> list[str]:
    """The comparisons as sentences, the total first."""
    if table.empty:
        return [
            f"There is nothing to compare with {study.baseline} yet: one adapter, or no condition that two of them share."
        ]
    counts = table["verdict"].value_counts()
    total = ", ".join(
        f"{counts[word]} {word}"
        for word in ("better", "worse", "no detectable difference", "too few seeds")
        if word in counts
    )
    lines = [f"{measure.label}: of {len(table)} comparisons with {study.baseline}: {total}."]
    for row in table.to_dict("records"):
        where = ", ".join(f"{key.split('.')[-1]} {row[key]}" for key in study.conditions)
        head = f"{row['adapter']}{f' at {where}' if where else ''}: {row['verdict']}"
        if row["verdict"] == "too few seeds":
            lines.append(f"{head} ({row['seeds']} shared; 3 are the least, 5 or more are better).")
            continue
        lines.append(
            f"{head} ({row['difference']:+.4f}, 95 % interval {row['low']:+.4f} to {row['high']:+.4f}, "
            f"{row['seeds']} seeds, which could have shown {row['detectable']:.4f})."
        )
    return lines


def judged_by(runs: pd.DataFrame) -> tuple[Metric, Metric]:
    """(the metric that the runs are judged by on test data, the one that they have for every epoch)."""
    name = runs["param:backbone.family"].iloc[0] if "param:backbone.family" in runs else ""
    if name not in FAMILIES:  # of a store with runs of another version
        return METRICS["loss"], METRICS["loss"]
    chosen = runs["param:dataset.format"].iloc[0] if "param:dataset.format" in runs else None
    return FAMILIES[name].headline(chosen), FAMILIES[name].curve(chosen)


def numeric(column: pd.Series) -> bool:
    """True if every value is a number."""
    return bool(pd.to_numeric(column, errors="coerce").notna().all())


def _by_condition(study: Study) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    if not study.conditions:
        return [({}, study.finished)]
    groups = study.finished.groupby(study.conditions, sort=True, dropna=False)
    return [(dict(zip(study.conditions, values, strict=True)), part) for values, part in groups]


def _study(title: str, runs: pd.DataFrame, tune: Sequence[str]) -> Study:
    headline, curve = judged_by(runs)
    if headline.column not in runs:
        headline = curve
    quality = on_test(headline)
    selection = Measure(f"best/{curve.key}", f"val {curve.label}", curve.greater_is_better)
    gap = Measure(f"final/gap_{curve.key}", f"gap in {curve.label}", False)
    extra = [on_test(metric) for metric in shown(COMPARED) if metric.column in runs and metric.column != quality.column]
    conditions, tuned_keys = _conditions(runs, tune)
    for key in [*conditions, *tuned_keys]:
        column = runs.get(f"param:{key}", runs.get(key))
        runs[key] = pd.to_numeric(column) if numeric(column) else column
    tuned, chosen = _tune(runs, conditions, tuned_keys, selection)
    adapters = list(dict.fromkeys(chosen["adapter"]))
    baseline = next((name for name in BASELINES if name in adapters), adapters[0])
    adapters.sort(key=lambda name: name != baseline)  # stable: the baseline first, the others as they were
    chosen = chosen.sort_values(
        "adapter", key=lambda column: column.map(adapters.index), kind="stable", ignore_index=True
    )
    finished = chosen[chosen["state"] == "finished"].copy()
    conditions.sort(
        key=lambda key: not (numeric(finished[key]) and finished[key].nunique() > 1)
    )  # stable: numbers first
    return Study(
        title, chosen, finished, conditions, quality, selection, gap, extra, tuned, baseline, adapters
    )  # fmt: skip


def _conditions(runs: pd.DataFrame, tune: Sequence[str]) -> tuple[list[str], list[str]]:
    """(keys that vary within an adapter, tuned ones among them); a key that follows another one is left out."""
    varying = []
    for column in runs:
        key = str(column).removeprefix("param:")
        if not str(column).startswith("param:") or key == "seed":
            continue
        if runs.groupby("adapter")[column].nunique(dropna=False).max() > 1:
            varying.append(key)
    known = [*tune, *PREFERRED]
    varying.sort(key=lambda key: (known.index(key) if key in known else len(known), key))
    kept: list[str] = []
    for key in varying:
        follows = any(
            runs.groupby(["adapter", f"param:{other}"], dropna=False)[f"param:{key}"].nunique(dropna=False).max() == 1
            for other in kept
        )
        if not follows:
            kept.append(key)
    return [key for key in kept if key not in tune], [key for key in kept if key in tune]


def _tune(
    runs: pd.DataFrame, conditions: list[str], keys: list[str], selection: Measure
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(picked values with their validation score, the runs that have them).

    The value with the best mean over seeds on validation; one that did not finish for as many seeds as another cannot win.
    """
    if not keys:
        return pd.DataFrame(), runs
    picked, kept = [], []
    for values, part in runs.groupby(["adapter", *conditions], sort=False, dropna=False):
        done = part[part["state"] == "finished"]
        score = done.groupby(keys)[selection.column].agg(["mean", "count"])
        score = score[score["count"] == score["count"].max()]["mean"]
        if score.empty:
            continue
        best = score.idxmax() if selection.more_is_better else score.idxmin()
        chosen = dict(zip(keys, best if isinstance(best, tuple) else (best,), strict=True))
        of_grid = {key: ", ".join(f"{value:g}" for value in sorted(part[key].unique())) for key in keys}
        row = {**dict(zip(["adapter", *conditions], values, strict=True)), **chosen, selection.label: score[best]}
        row |= {f"tried {key}": text for key, text in of_grid.items()}
        row["did not finish"] = int((part["state"] != "finished").sum())
        picked.append(row)
        kept.append(part[(part[keys] == pd.Series(chosen)).all(axis=1)])
    return pd.DataFrame(picked), pd.concat(kept, ignore_index=True)
