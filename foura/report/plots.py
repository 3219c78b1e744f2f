"""The figures of a sweep's report, each as the bytes of an SVG image, None where there is nothing to draw."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, ScalarFormatter

from foura.escape import in_figure
from foura.figures import plt
from foura.metrics import COST, METRICS, shown
from foura.report.compare import Measure, Study, intervals

COLOURS: tuple[str, ...] = ("#3b6ea8", "#c8553d", "#4c956c", "#8e5aa8", "#d6a13a", "#5a5a5a", "#3aa6a0", "#b0486f")
COLOURS += ("#7fb2e5", "#f0a58f", "#95d5a6", "#c9a3de", "#7a5c1e", "#a8a8a8", "#1f5f5b", "#e39bb8", "#1c1c1c")
MARKERS = "osD^vPX*"
PANELS = 6  # of a figure at most
LAYERS = 80  # of a heat map at most
MEMORY = "cost/peak_memory_mb"  # that of the process, which the adapter hardly moves


def colour(study: Study, adapter: str) -> str:
    return COLOURS[study.adapters.index(adapter) % len(COLOURS)]


def against_x(study: Study, measures: Sequence[Measure]) -> bytes | None:
    """Each measure against the x axis: means with their intervals, and every run as a dot; a row of panels a facet."""
    x, facets = study.x, study.conditions[1:]
    if x is None or study.finished[x].nunique() < 2:
        return _bars(study, measures)
    values = sorted(study.finished[x].unique())
    log = min(values) > 0 and max(values) / min(values) >= 4
    groups = _facets(study.finished, facets)
    fig, axes = _panels(len(groups), len(measures), 3.9, 3.1)
    for line, (facet, part) in zip(axes, groups, strict=True):
        for axis, measure in zip(line, measures, strict=True):
            table = intervals(study, measure)
            for key, value in facet.items():
                table = table[table[key] == value]
            for number, adapter in enumerate(study.adapters):
                shift = (number - (len(study.adapters) - 1) / 2) * 0.05
                own, dots = table[table["adapter"] == adapter].sort_values(x), part[part["adapter"] == adapter]
                if own.empty:
                    continue
                moved = [_shifted(value, shift, values, log) for value in own[x]]
                style: Any = {"color": colour(study, adapter), "marker": MARKERS[number % len(MARKERS)]}
                axis.plot(moved, own["mean"], label=in_figure(adapter), markersize=4, linewidth=1.2, **style)
                axis.vlines(moved, own["low"], own["high"], color=style["color"], linewidth=1)
                at = [_shifted(value, shift, values, log) for value in dots[x]]
                axis.scatter(at, dots[measure.column], s=5, alpha=0.35, color=style["color"], linewidths=0)
            if log:
                axis.set_xscale("log", base=2)
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
            axis.set_xlabel(x.split(".")[-1].replace("_", " "))
            axis.set_title(measure.label + _said(facet), fontsize=10)
            _clean(axis)
    _legend(fig, axes[0][0])
    return _svg(fig)


def curves(study: Study, histories: pd.DataFrame, metric: str) -> bytes | None:
    """Training part (dashed) and validation by epoch, means over seeds, a panel for each of up to six conditions."""
    if histories.empty:
        return None
    groups = _facets(study.finished, study.conditions)
    if len(groups) > PANELS:
        groups = [groups[i] for i in np.linspace(0, len(groups) - 1, PANELS).round().astype(int)]
    columns = min(3, len(groups))
    fig, axes = _panels(-(-len(groups) // columns), columns, 3.9, 2.9)
    flat = [axis for line in axes for axis in line]
    for axis, (facet, part) in zip(flat, groups, strict=False):
        for adapter in study.adapters:
            ids = part[part["adapter"] == adapter]["run_id"]
            own = histories[histories["run_id"].isin(ids)].groupby("epoch")[["train", "val"]].mean()
            if not own.empty:
                axis.plot(own.index, own["val"], color=colour(study, adapter), label=in_figure(adapter), linewidth=1.3)
                axis.plot(own.index, own["train"], color=colour(study, adapter), linestyle="--", linewidth=0.9)
        axis.set_title(f"{metric}{_said(facet)}", fontsize=10)
        axis.set_xlabel("epoch (dashed: training part)")
        _clean(axis)
    for axis in flat[len(groups) :]:
        axis.axis("off")
    _legend(fig, flat[0])
    return _svg(fig)


def by_epoch(study: Study, histories: pd.DataFrame) -> bytes | None:
    """Each further measure by epoch, means over seeds: a row of panels a measure, a column for each condition."""
    if histories.empty:
        return None
    rows = histories.merge(study.finished[["run_id", "adapter", *study.conditions]], on="run_id")
    groups, measures = _facets(rows, study.conditions)[:PANELS], list(dict.fromkeys(histories["measure"]))
    fig, axes = _panels(len(measures), len(groups), 3.4, 2.6)
    for line, measure in zip(axes, measures, strict=True):
        for axis, (facet, part) in zip(line, groups, strict=True):
            for adapter in study.adapters:
                own = part[(part["adapter"] == adapter) & (part["measure"] == measure)].groupby("epoch")["value"].mean()
                if not own.empty:
                    axis.plot(
                        own.index,
                        own,
                        color=colour(study, adapter),
                        label=in_figure(adapter),
                        marker=".",
                        linewidth=1.1,
                    )
            axis.set_title(METRICS[measure].label + _said(facet), fontsize=9)
            axis.set_xlabel("epoch", fontsize=8)
            _clean(axis)
    _legend(fig, axes[0][0])
    return _svg(fig)


def pareto(study: Study, summary: pd.DataFrame) -> bytes | None:
    """Quality against each cost, a dot an adapter and condition; those that nothing beats in both are joined."""
    costs = [metric.heading for metric in shown(COST) if metric.heading in summary and metric.key != MEMORY]
    if not costs or len(summary) < 2:
        return None
    fig, axes = _panels(1, len(costs), 3.3, 3.1)
    for axis, cost in zip(axes[0], costs, strict=True):
        rows = summary.dropna(subset=[cost, study.quality.label])
        for number, adapter in enumerate(study.adapters):
            own = rows[rows["adapter"] == adapter]
            style: Any = {"color": colour(study, adapter), "marker": MARKERS[number % len(MARKERS)]}
            axis.scatter(own[cost], own[study.quality.label], label=in_figure(adapter), s=22, **style)
        sign = 1 if study.quality.more_is_better else -1
        front, best = [], -np.inf
        for _, row in rows.sort_values(cost).iterrows():
            if sign * row[study.quality.label] > best:
                best = sign * row[study.quality.label]
                front.append((row[cost], row[study.quality.label]))
        axis.plot(*zip(*front, strict=True), color="#999999", linewidth=0.8, zorder=0)
        if rows[cost].min() > 0 and rows[cost].max() / rows[cost].min() > 20:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            axis.xaxis.set_major_locator(MaxNLocator(4))
        if rows[cost].max() > 1000 or axis.get_xscale() == "log":
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_xlabel(cost)
        axis.set_ylabel(study.quality.label)
        _clean(axis)
    _legend(fig, axes[0][0])
    return _svg(fig)


def spectra(study: Study, values: pd.DataFrame) -> bytes | None:
    """Singular values of ΔW over the largest, mean over layers and runs, for each adapter and up to six conditions."""
    if values.empty:
        return None
    values = values.merge(study.finished[["run_id", "adapter", *study.conditions]], on="run_id")
    largest = values.groupby(["run_id", "layer"])["value"].transform("max")
    values = values.assign(share=(values["value"] / largest).where(largest > 0))
    groups = _facets(values, study.conditions)[:PANELS]
    columns = min(3, len(groups))
    fig, axes = _panels(-(-len(groups) // columns), columns, 3.9, 2.8)
    flat = [axis for line in axes for axis in line]
    for axis, (facet, part) in zip(flat, groups, strict=False):
        for adapter in study.adapters:
            own = part[part["adapter"] == adapter].groupby("index")["share"].mean()
            own = own[own > 1e-5]  # beyond the rank there is only rounding
            if not own.empty:
                axis.plot(own.index, own, color=colour(study, adapter), label=in_figure(adapter), linewidth=1.3)
        axis.set_title(f"singular values of ΔW, largest = 1{_said(facet)}", fontsize=9)
        axis.set_xlabel("index")
        axis.set_ylim(0, 1.03)
        _clean(axis)
    for axis in flat[len(groups) :]:
        axis.axis("off")
    _legend(fig, flat[0])
    return _svg(fig)


def gate_map(study: Study, layers: pd.DataFrame) -> bytes | None:
    """Share of open ranks of every layer, a column for each gated adapter and condition, means over seeds."""
    if layers.empty or layers["gate_std"].isna().all():
        return None
    gated = layers.dropna(subset=["gate_std"]).merge(
        study.finished[["run_id", "adapter", *study.conditions]], on="run_id"
    )
    gated = gated.assign(share=gated["effective_rank"] / gated["rank_x" if "rank_x" in gated else "rank"])
    conditions = [f"{key}_y" if f"{key}_y" in gated else key for key in study.conditions]
    table = gated.pivot_table(index="layer", columns=["adapter", *conditions], values="share", sort=False).iloc[:LAYERS]
    width = 2.2 + 0.065 * max(len(str(name)) for name in table.index) + 0.62 * len(table.columns)
    fig, axis = plt.subplots(figsize=(width, 1.6 + 0.2 * len(table)), layout="constrained")
    shown = axis.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axis.set_yticks(range(len(table)), table.index, fontsize=7)
    names = [" ".join(str(v) for v in (column if isinstance(column, tuple) else (column,))) for column in table.columns]
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    fig.colorbar(shown, label="share of ranks open")
    axis.set_title("gates, layer by layer", fontsize=10)
    return _svg(fig)


def by_strength(study: Study, rows: pd.DataFrame) -> bytes | None:
    """Image metrics against the adapter scale, means with the spread over seeds."""
    if rows.empty or rows["strength"].nunique() < 2:
        return None
    keys = ["run_id", "adapter", *study.conditions]
    measures = [column for column in rows if column not in ("strength", "run_id")]
    groups = _facets(rows.merge(study.finished[keys], on="run_id"), study.conditions)[:PANELS]
    fig, axes = _panels(len(groups), len(measures), 3.0, 2.8)
    for line, (facet, part) in zip(axes, groups, strict=True):
        for axis, measure in zip(line, measures, strict=True):
            for adapter in study.adapters:
                own = part[part["adapter"] == adapter].groupby("strength")[measure].agg(["mean", "min", "max"])
                if own.empty:
                    continue
                ink = colour(study, adapter)
                axis.plot(own.index, own["mean"], color=ink, label=in_figure(adapter), marker="o", markersize=3)
                axis.fill_between(own.index, own["min"], own["max"], color=ink, alpha=0.15, linewidth=0)
            axis.set_title(measure.replace("_", " ") + _said(facet), fontsize=9)
            axis.set_xlabel("strength (band: all seeds)", fontsize=8)
            _clean(axis)
    _legend(fig, axes[0][0])
    return _svg(fig)


def image(data: bytes, kind: str) -> str:
    """An image as the source of an <img>."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _bars(study: Study, measures: Sequence[Measure]) -> bytes:
    """Without a numeric x axis: a dot a run, the mean and its interval, a column for each adapter and condition."""
    tables = [intervals(study, measure) for measure in measures]
    keys = ["adapter", *study.conditions]
    names = [" ".join(str(row[key]) for key in keys) for row in tables[0].to_dict("records")]
    fig, axes = _panels(1, len(measures), max(3.4, 0.5 * len(names)), 3.6)
    for axis, measure, table in zip(axes[0], measures, tables, strict=True):
        for place, row in enumerate(table.to_dict("records")):
            own = study.finished
            for key in keys:
                own = own[own[key] == row[key]]
            ink = colour(study, row["adapter"])
            axis.scatter([place] * len(own), own[measure.column], s=8, alpha=0.4, color=ink, linewidths=0)
            axis.plot([place], [row["mean"]], marker="_", markersize=14, color=ink)
            axis.vlines([place], row["low"], row["high"], color=ink, linewidth=1.2)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axis.set_title(measure.label, fontsize=10)
        _clean(axis)
    return _svg(fig)


def _facets(runs: pd.DataFrame, keys: Sequence[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    if not keys:
        return [({}, runs)]
    return [(dict(zip(keys, values, strict=True)), part) for values, part in runs.groupby(list(keys), sort=True)]


def _said(facet: dict[str, Any]) -> str:
    return "".join(f", {key.split('.')[-1].replace('_', ' ')} {value}" for key, value in facet.items())


def _shifted(value: float, shift: float, values: Sequence[float], log: bool) -> float:
    """Adapters stand a little beside each other, so that intervals can be told apart."""
    return value * 2 ** (2 * shift) if log else value + shift * (max(values) - min(values)) / max(1, len(values) - 1)


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )  # fmt: skip


def _clean(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if isinstance(axis.yaxis.get_major_formatter(), ScalarFormatter):
        axis.yaxis.get_major_formatter().set_useOffset(False)


def _legend(fig: Any, axis: Any) -> None:
    handles, names = axis.get_legend_handles_labels()
    columns = max(1, min(len(names), int(fig.get_figwidth() / 1.7)))
    fig.set_figheight(
        fig.get_figheight() + 0.2 * max(0, -(-len(names) // columns) - 1)
    )  # its lines take none of a panel's
    fig.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def _svg(fig: Any) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(fig)
    return buffer.getvalue()
