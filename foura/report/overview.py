"""One verdict over the studies of a sweep, where it has several backbones or datasets."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from foura.analysis.tasks import Task, overall
from foura.report.compare import paired
from foura.report.forest import draw
from foura.report.rounding import decimals, fixed, signed
from foura.report.study import Study, by_condition, in_words
from foura.report.style import Panel, style_of
from foura.report.verdicts import total

LEAST = 3  # pairs of runs in a task


def over_tasks(studies: Sequence[Study]) -> pd.DataFrame:
    """Each adapter in each condition that several studies share, over their tasks; empty if there is nothing to share.

    A study counts if it has the baseline of the first one and a margin for its quality, which is the unit of its
    differences. Further conditions of a study are tasks of their own.
    """
    usable = [study for study in studies if study.baseline == studies[0].baseline and _unit_known(study)]
    if len(usable) < 2:
        return pd.DataFrame()
    keys = [key for key in usable[0].conditions if all(key in study.conditions for study in usable)]
    found: dict[tuple[Any, ...], list[tuple[str, Task]]] = {}
    for study in usable:
        for condition, part in by_condition(study.finished, study.conditions):
            for adapter in study.adapters[1:]:
                task = _task(study, condition, part[part["adapter"] == adapter])
                if task is not None:
                    case = (adapter, *(condition[key] for key in keys))
                    found.setdefault(case, []).append((study.title, task))
    shared = {case: tasks for case, tasks in found.items() if len({title for title, _ in tasks}) > 1}
    rows, order = [], list(dict.fromkeys(adapter for study in usable for adapter in study.adapters))
    for case, tasks in sorted(shared.items(), key=lambda item: order.index(item[0][0])):
        result = overall([task for _, task in tasks], tests=len(shared))
        studied = len({title for title, _ in tasks})
        rows.append({**dict(zip(["adapter", *keys], case, strict=True)), "studies": studied, **result.__dict__})
    return pd.DataFrame(rows)


def overview_lines(table: pd.DataFrame, studies: Sequence[Study]) -> list[str]:
    """The verdicts over tasks as sentences, the total first."""
    keys = _keys(table)
    lines = [f"Over all tasks: {total(table, studies[0].baseline)}"]
    for row in table.to_dict("records"):
        name = ", ".join(filter(None, (row["adapter"], in_words(row, keys))))
        if math.isnan(row["low"]):
            told = "all runs of a task have the same difference, of a share of an unknown number of items"
        else:
            places = min(2, decimals((row["high"] - row["low"]) / 2))
            mean, low, high = (signed(row[key], places) for key in ("mean", "low", "high"))
            share, least, most = (fixed(100 * row[f"improvement{end}"], 0) for end in ("", "_low", "_high"))
            told = (
                f"{mean} margins, interval {low} to {high}; beats {studies[0].baseline} in {share} % of pairs of runs, "
                f"{least} to {most} %"
            )
        lines.append(f"{name}: {row['verdict']} ({told}; {row['tasks']} tasks, {row['pairs']} pairs).")
    return lines


def overview_note(studies: Sequence[Study]) -> str:
    """The method, and the studies that are left out."""
    text = (
        "Interquartile mean of the differences of all tasks, each in units of its margin: 1 is a difference that just "
        "matters, positive is better. Stratified bootstrap over the seeds of each task (Agarwal et al., 2021), widened for few "
        "seeds; it is about these tasks, not about others. A row is equivalent if it is within ±1."
    )
    left = [study.title for study in studies if study.baseline != studies[0].baseline or not _unit_known(study)]
    return text + (f" Without {', '.join(left)}: another baseline, or no margin for its quality." if left else "")


def overview_figure(table: pd.DataFrame, studies: Sequence[Study]) -> Panel:
    """The forest plot over tasks."""
    rows = [{**row, "difference": row["mean"], "margin": 1.0} for row in table.to_dict("records")]
    labels = [", ".join(filter(None, (row["adapter"], in_words(row, _keys(table))))) for row in rows]
    owner = {adapter: study for study in reversed(studies) for adapter in study.adapters}
    styles = [style_of(owner[row["adapter"]], row["adapter"]) for row in rows]
    return draw(rows, labels, styles, f"all tasks: difference from {studies[0].baseline}, in margins", True)


def _keys(table: pd.DataFrame) -> list[str]:
    return list(table.columns[1 : list(table.columns).index("studies")])


def _unit_known(study: Study) -> bool:
    return study.quality.margin is not None or study.quality.margin_share is not None


def _task(study: Study, condition: dict[str, Any], rows: pd.DataFrame) -> Task | None:
    """The finite pairs of an adapter's runs and the baseline's in a condition; None for fewer than three."""
    measure = study.quality
    own, base, _ = paired(study, measure.column, condition, rows)
    column = measure.column  # a seed may have several runs, which differ in what changes no other number
    own, base = (runs[np.isfinite(runs[column])].groupby("seed")[column].mean() for runs in (own, base))
    seeds = sorted(set(own.index) & set(base.index))
    if len(seeds) < LEAST:
        return None
    sign = 1.0 if measure.more_is_better else -1.0
    mine, others = (sign * values[seeds].to_numpy(float) for values in (own, base))
    unit = measure.margin
    if unit is None:
        assert measure.margin_share is not None
        unit = measure.margin_share * float(np.abs(others).mean())
    return Task(mine, others, unit, measure.item(study.finished)) if unit > 0 else None
