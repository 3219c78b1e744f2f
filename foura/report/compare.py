"""From a study's runs to its numbers, each for one adapter in one condition: means, comparisons, slopes."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from foura.analysis.items import interval as interval_over_items
from foura.analysis.statistics import LEAST, LEVEL, compare, mean_interval, slope
from foura.metrics import COST, UPDATE, shown
from foura.report.study import Measure, Study, by_condition

OTHER_DATA = "other_data"  # column of the seeds whose pairs had different data, in tables that have such
STATES = ("diverged", "failed", "interrupted", "running")


def summary(study: Study) -> pd.DataFrame:
    """One row per adapter and condition: runs by state, then mean and standard deviation over seeds of every measure."""
    rows = []
    keys = ["adapter", *study.conditions]
    for values, part in study.runs.groupby(keys, sort=False, dropna=False):
        row = dict(zip(keys, values, strict=True))
        done = part[part["state"] == "finished"]
        row["seeds"] = len(done)
        for state in STATES:
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


def comparisons(study: Study, measure: Measure, items: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every other adapter against the baseline, condition by condition, on the seeds that both have.

    All rows are of one family of tests (see foura.analysis.statistics). "unpaired" has the seeds that only one of both has,
    "other_data" those whose data differ, if there are any; "items_low" and "items_high" are the interval over seeds and test
    items, nan where it is not known.

    Args:
        items: test_items.csv of the runs, with a column run_id.
    """
    found = []
    for condition, part in by_condition(study.finished, study.conditions):
        for adapter in study.adapters:
            own, base, other = paired(study, measure.column, condition, part[part["adapter"] == adapter])
            measured = len(own) + len(other) and len(base) + len(other)  # a measure may not exist here
            if adapter != study.baseline and measured:
                found.append(({"adapter": adapter, **condition}, own, base, other))
    rows = []
    for case, own, base, other in found:
        values, others = _by_seed(own, measure.column), _by_seed(base, measure.column)
        item = measure.item(pd.concat([own, base]))
        result = compare(values, others, measure.more_is_better, len(found), _margin(measure, base), item)
        unpaired = _listed(set(values) ^ set(others))
        low, high = _over_items(study, measure, own, base, items, len(found))
        row = {**case, **vars(result), "unpaired": unpaired, "item": item, "items_low": low, "items_high": high}
        rows.append(row | ({OTHER_DATA: _listed(other)} if any(seeds for *_, seeds in found) else {}))
    return pd.DataFrame(rows)


def paired(
    study: Study, column: str, condition: Mapping[str, Any], own: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[int]]:
    """(runs of an adapter in a condition, those of the baseline, seeds at which the two had different data).

    Only runs that have the column; without those of the seeds with different data, which are no pairs.
    """
    own, base = (runs.dropna(subset=[column]) for runs in (own, study.baseline_in(condition)))
    if "data_fingerprint" not in study.finished:
        return own, base, []
    data, others = (_by_seed(runs, "data_fingerprint") for runs in (own, base))
    known = {seed for seed in set(data) & set(others) if isinstance(data[seed], str) and isinstance(others[seed], str)}
    differ = sorted(seed for seed in known if data[seed] and others[seed] and data[seed] != others[seed])
    return own[~own["seed"].isin(differ)], base[~base["seed"].isin(differ)], differ


def slopes(study: Study, measure: Measure) -> pd.DataFrame:
    """Change of a measure per doubling of the x axis, one row per adapter and other condition.

    Over the seeds that have every value of x; a condition with one value of x has no slope.
    """
    if study.x is None or (study.finished[study.x] <= 0).any():
        return pd.DataFrame()
    cases = []
    for values, part in study.finished.groupby(["adapter", *study.facets], sort=False, dropna=False):
        wide = part.pivot_table(index="seed", columns=study.x, values=measure.column).dropna()
        if len(wide.columns) >= 2 and len(wide) >= 1:
            cases.append((dict(zip(["adapter", *study.facets], values, strict=True)), wide))
    rows = []
    for case, wide in cases:
        mean, low, high = slope([float(x) for x in wide.columns], wide.to_numpy().tolist(), tests=len(cases))
        rows.append({**case, "per doubling": mean, "low": low, "high": high, "seeds": len(wide)})
    return pd.DataFrame(rows)


def intervals(study: Study, measure: Measure) -> pd.DataFrame:
    """Mean of a measure over seeds with its own 95 % interval, one row per adapter and condition."""
    keys = ["adapter", *study.conditions]
    rows = []
    for values, part in study.finished.groupby(keys, sort=False, dropna=False):
        mean, low, high = mean_interval(part[measure.column].dropna().tolist())
        rows.append({**dict(zip(keys, values, strict=True)), "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def _over_items(
    study: Study, measure: Measure, own: pd.DataFrame, base: pd.DataFrame, items: pd.DataFrame | None, tests: int
) -> tuple[float, float]:
    """The interval of a difference over seeds and test items; nan where the items are not known or not the same for all."""
    split_seed, key = "param:dataset.split_seed", measure.column.removeprefix("test/")
    same = split_seed not in study.finished or study.finished[split_seed].nunique() == 1
    if items is None or key not in items or not measure.column.startswith("test/") or not same:
        return math.nan, math.nan
    values = {run_id: part.to_numpy() for run_id, part in items.groupby("run_id")[key]}
    candidate, baseline = _by_seed(own, "run_id"), _by_seed(base, "run_id")
    shared = sorted(set(candidate) & set(baseline))
    found = [values.get(side[seed], np.empty(0)) for side in (candidate, baseline) for seed in shared]
    sizes = {len(one) for one in found}
    if len(shared) < LEAST or len(sizes) > 1 or min(sizes) < 2 or np.isnan(found).any():
        return math.nan, math.nan
    return interval_over_items(np.stack(found[: len(shared)]) - np.stack(found[len(shared) :]), LEVEL / tests)


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds))


def _by_seed(rows: pd.DataFrame, column: str) -> dict[int, Any]:
    return dict(zip(rows["seed"], rows[column], strict=True))


def _margin(measure: Measure, baseline: pd.DataFrame) -> float | dict[int, float] | None:
    """δ, or δ of each seed as a share of the baseline's value; None if a share is of nothing."""
    if measure.margin is not None or measure.margin_share is None:
        return measure.margin
    shares: dict[Any, float] = {
        seed: measure.margin_share * abs(value) for seed, value in _by_seed(baseline, measure.share_of).items()
    }
    return shares if all(share > 0 and math.isfinite(share) for share in shares.values()) else None
