"""Figures of what the runs reached: measures by condition, learning curves, quality against cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from foura.escape import in_figure
from foura.metrics import COST, METRICS, shown
from foura.report.compare import intervals
from foura.report.study import Measure, Study, by_condition, in_words, name_of
from foura.report.style import QUIET, Panel, finish, numbered, panel, style_of

PANELS = 6  # conditions that a figure shows at most
MEMORY = "cost/peak_memory_mb"  # of the whole process, which the adapter hardly moves


def by_measure(study: Study, measure: Measure) -> list[Panel]:
    """A measure by condition: means with their intervals, and every run as a dot.

    Against the x axis, one panel for each combination of the other conditions; without an x axis, one row per adapter and
    condition.
    """
    table = intervals(study, measure)
    if study.x is None:
        return [_rows(study, measure, table)]
    panels = []
    for facet, part in by_condition(study.finished, study.facets):
        own = table
        for key, value in facet.items():
            own = own[own[key] == value]
        panels.append(_against_x(study, measure, own, part, in_words(facet, study.facets)))
    return numbered(panels)


def curves(study: Study, histories: pd.DataFrame, label: str) -> list[Panel]:
    """Validation (solid) and training part (dashed) by epoch, means over seeds, a panel for each of some conditions."""
    if histories.empty:
        return []
    panels = []
    for facet, part in some(by_condition(study.finished, study.conditions)):
        fig, axis = panel(2.7)
        for adapter in study.adapters:
            ids = part[part["adapter"] == adapter]["run_id"]
            own = histories[histories["run_id"].isin(ids)].groupby("epoch")[["train", "val"]].mean()
            if not own.empty:
                ink = style_of(study, adapter)["color"]
                _line(axis, own.index, own["val"], study, adapter)
                alone = {"marker": "_", "markersize": 12} if len(own) == 1 else {}  # a line of one point is not drawn
                axis.plot(own.index, own["train"], color=ink, linestyle="--", linewidth=0.9, **alone)
        panels.append(_by_epoch(fig, axis, _titled(label, in_words(facet, study.conditions)), "dashed: training part"))
    return numbered(panels)


def further_curves(study: Study, histories: pd.DataFrame) -> list[Panel]:
    """Further measures by epoch, means over seeds: a panel for each measure and some conditions."""
    if histories.empty:
        return []
    rows = histories.merge(study.finished[["run_id", "adapter", *study.conditions]], on="run_id")
    panels = []
    for measure in dict.fromkeys(histories["measure"]):
        of_measure = rows[rows["measure"] == measure]
        for facet, part in some(by_condition(of_measure, study.conditions)):
            fig, axis = panel(2.5)
            for adapter in study.adapters:
                own = part[part["adapter"] == adapter].groupby("epoch")["value"].mean()
                if not own.empty:
                    _line(axis, own.index, own, study, adapter)
            if measure == "adapter/open_ranks":  # of all ranks: a zoom would make rounding look like a change
                ranks = study.finished.set_index("run_id")["rank"]
                axis.set_ylim(0, 1.05 * ranks[part["run_id"].unique()].max())
                axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            title = _titled(METRICS[measure].label, in_words(facet, study.conditions))
            panels.append(_by_epoch(fig, axis, title))
    return numbered(panels)


def pareto(study: Study, summary: pd.DataFrame) -> list[Panel]:
    """Quality against each cost, a dot per adapter and rank; a line joins those that nothing beats in both.

    A panel for each combination of the other conditions: quality on other data or at other rates is another question.
    """
    costs = [metric.heading for metric in shown(COST) if metric.heading in summary and metric.key != MEMORY]
    others = [key for key in study.conditions if key != "rank"]
    panels = []
    for facet, part in some(by_condition(summary, others)):
        for cost in costs:
            rows = part.dropna(subset=[cost, study.quality.label])
            if len(rows) >= 3:
                panels.append(_pareto(study, rows, cost, in_words(facet, others)))
    return numbered(panels)


def some(groups: list[Any]) -> list[Any]:
    """Up to six of the groups, evenly spread, the first and the last among them."""
    if len(groups) <= PANELS:
        return groups
    return [groups[index] for index in np.linspace(0, len(groups) - 1, PANELS).round().astype(int)]


def front(rows: pd.DataFrame, cost: str, quality: str, more_is_better: bool) -> list[tuple[float, float]]:
    """The (cost, quality) that no row beats in both, by rising cost."""
    sign, found, best = (1 if more_is_better else -1), [], -np.inf
    for _, row in rows.assign(better=-sign * rows[quality]).sort_values([cost, "better"]).iterrows():
        if sign * row[quality] > best:
            best = sign * row[quality]
            found.append((row[cost], row[quality]))
    return found


def _against_x(study: Study, measure: Measure, table: pd.DataFrame, runs: pd.DataFrame, facet: str) -> Panel:
    x = study.x
    assert x is not None
    values = sorted(study.finished[x].unique())
    log = min(values) > 0 and max(values) / min(values) >= 4
    fig, axis = panel(2.7)
    for number, adapter in enumerate(study.adapters):
        own, dots = table[table["adapter"] == adapter].sort_values(x), runs[runs["adapter"] == adapter]
        if own.empty:
            continue
        shift = (number - (len(study.adapters) - 1) / 2) * min(0.05, 0.3 / len(study.adapters))
        style = style_of(study, adapter)
        places = [_shifted(value, shift, values, log) for value in own[x]]
        axis.plot(places, own["mean"], label=in_figure(adapter), markersize=4.5, linewidth=1.2, **style)
        axis.vlines(places, own["low"], own["high"], color=style["color"], linewidth=1)
        at = [_shifted(value, shift, values, log) for value in dots[x]]
        axis.scatter(at, dots[measure.column], s=6, alpha=0.4, color=style["color"], linewidths=0)
    if log:
        axis.set_xscale("log", base=2)
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()
    margin = 0.35 if log else 0.0
    if log:
        axis.set_xlim(min(values) * 2**-margin / 1.1, max(values) * 2**margin * 1.1)
    axis.set_xlabel(name_of(x))
    title = _titled(measure.label, facet)
    axis.set_title(title)
    return finish(fig, axis, f"{title} against {name_of(x)}")


def _rows(study: Study, measure: Measure, table: pd.DataFrame) -> Panel:
    """Without an x axis: one row per adapter and condition."""
    keys = ["adapter", *study.conditions]
    fig, axis = panel(0.75 + 0.26 * len(table))
    for place, row in enumerate(table.to_dict("records")):
        own = study.finished
        for key in keys:
            own = own[own[key] == row[key]]
        style = style_of(study, row["adapter"])
        axis.scatter(own[measure.column], [place] * len(own), s=8, alpha=0.4, color=style["color"], linewidths=0)
        axis.hlines([place], row["low"], row["high"], color=style["color"], linewidth=1.2)
        axis.plot([row["mean"]], [place], linestyle="", markersize=5, **style)
    names = [
        ", ".join(filter(None, (row["adapter"], in_words(row, study.conditions)))) for row in table.to_dict("records")
    ]
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.locator_params(axis="x", nbins=4)
    axis.set_title(measure.label)
    return finish(fig, axis, f"{measure.label} by adapter", named=False)


def _pareto(study: Study, rows: pd.DataFrame, cost: str, facet: str) -> Panel:
    fig, axis = panel(2.7)
    quality = study.quality.label
    for adapter in study.adapters:
        own = rows[rows["adapter"] == adapter]
        if not own.empty:
            axis.plot(
                own[cost],
                own[quality],
                label=in_figure(adapter),
                linestyle="",
                markersize=5,
                **style_of(study, adapter),
            )
    best = front(rows, cost, quality, study.quality.more_is_better)
    axis.plot(*zip(*best, strict=True), color=QUIET, linewidth=0.9, zorder=0)
    if rows[cost].min() > 0 and rows[cost].max() / rows[cost].min() > 20:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(4))
    if rows[cost].max() > 1000 or axis.get_xscale() == "log":  # the formatter of logarithms writes mathematics
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel(cost)
    title = _titled(quality, facet)
    axis.set_title(title)
    return finish(fig, axis, f"{title} against {cost}")


def _line(axis: Any, x: Any, y: Any, study: Study, adapter: str) -> None:
    """A curve with some of its points marked, so that it is told apart without colour."""
    marks = max(1, len(y) // 6)
    axis.plot(x, y, label=in_figure(adapter), linewidth=1.3, markersize=4, markevery=marks, **style_of(study, adapter))


def _by_epoch(fig: Any, axis: Any, title: str, note: str = "") -> Panel:
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axis.set_xlabel(f"epoch ({note})" if note else "epoch")
    axis.set_title(title)
    return finish(fig, axis, f"{title} by epoch")


def _titled(label: str, facet: str) -> str:
    return f"{label} ({facet})" if facet else label


def _shifted(value: float, shift: float, values: Sequence[float], log: bool) -> float:
    """Adapters stand a little beside each other, so that intervals can be told apart."""
    return value * 2 ** (2 * shift) if log else value + shift * (max(values) - min(values)) / max(1, len(values) - 1)
