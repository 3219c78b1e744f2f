"""Figures of what the adapters learned: spectra of the updates, gates, and image metrics by strength."""

import pandas as pd
from matplotlib.ticker import MaxNLocator

from foura.escape import in_figure
from foura.figures import is_one_colour
from foura.metrics import METRICS
from foura.report.plots import some
from foura.report.study import Study, by_condition, in_words
from foura.report.style import Panel, finish, numbered, panel, style_of

LAYERS = 80  # of a heat map at most
ROUNDING = 1e-5  # of the largest singular value: smaller ones are those beyond the rank


def spectra(study: Study, values: pd.DataFrame) -> list[Panel]:
    """Singular values of ΔW over the largest, mean over layers and runs, a panel for each of some conditions."""
    if values.empty:
        return []
    values = values.merge(study.finished[["run_id", "adapter", *study.conditions]], on="run_id")
    largest = values.groupby(["run_id", "layer"])["value"].transform("max")
    values = values.assign(share=(values["value"] / largest).where(largest > 0))
    panels = []
    for facet, part in some(by_condition(values, study.conditions)):
        fig, axis = panel(2.6)
        for adapter in study.adapters:
            own = part[part["adapter"] == adapter].groupby("index")["share"].mean()
            own = own[own > ROUNDING]
            if not own.empty:
                every = max(1, len(own) // 6)
                style = style_of(study, adapter)
                axis.plot(
                    own.index, own, label=in_figure(adapter), linewidth=1.3, markersize=4, markevery=every, **style
                )
        axis.set_xlabel("index (largest singular value = 1)")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axis.set_ylim(0, 1.05)
        where = in_words(facet, study.conditions)
        title = f"singular values of ΔW{f' ({where})' if where else ''}"
        axis.set_title(title)
        panels.append(finish(fig, axis, title))
    return numbered(panels)


def gate_maps(study: Study, layers: pd.DataFrame) -> tuple[list[Panel], list[str]]:
    """Maps by layer of the share of open ranks and of its spread over inputs; a sentence for each that had one colour."""
    panels, said = [], []
    table = of_gates(study, layers, "effective_rank")
    if not table.empty:
        low, high = float(table.min().min()), float(table.max().max())
        if is_one_colour(low, high):
            said.append(f"Every gate of every layer has {(low + high) / 2:.1%} of its ranks open, in all conditions.")
        else:
            panels.append(_map(study, table, "open ranks by layer", "share of ranks open", 1.0))
    table = of_gates(study, layers, "open_std")
    if not table.empty:
        low, high = float(table.min().min()), float(table.max().max())
        if is_one_colour(low, high):
            said.append(
                f"In every layer the number of open ranks differs between inputs by {(low + high) / 2:.1%} of the rank "
                "(standard deviation), in all conditions."
            )
        else:
            panels.append(
                _map(study, table, "spread of open ranks over inputs", "standard deviation, share of rank", high)
            )
    return numbered(panels), said


def _map(study: Study, table: pd.DataFrame, title: str, label: str, highest: float) -> Panel:
    names = [in_words(dict(zip(table.columns.names, c, strict=True)), study.conditions) for c in table.columns]
    names = [", ".join(filter(None, (c[0], name))) for c, name in zip(table.columns, names, strict=True)]
    shown = table.iloc[:LAYERS]
    width = 2.2 + 0.055 * max(len(str(name)) for name in shown.index) + 0.3 * len(names)
    fig, axis = panel(1.5 + 0.17 * len(shown), max(4.0, width))
    drawn = axis.imshow(shown, aspect="auto", cmap="cividis", vmin=0, vmax=highest)
    axis.set_yticks(range(len(shown)), shown.index)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
    fig.colorbar(drawn, label=label, shrink=0.8)
    axis.set_title(title)
    return finish(fig, axis, f"{title}, adapter and condition: {label}", named=False)


def of_gates(study: Study, layers: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of layers.csv over the rank: a row per layer, a column per gated adapter and condition, means over seeds."""
    if layers.empty or column not in layers or layers["gate_std"].isna().all():
        return pd.DataFrame()
    gated = layers.dropna(subset=["gate_std", column])
    gated = gated.assign(share=gated[column] / gated["rank"])[["run_id", "layer", "share"]]
    keys = ["adapter", *study.conditions]
    gated = gated.merge(study.finished[["run_id", *keys]], on="run_id")
    table = gated.pivot_table(index="layer", columns=keys, values="share", sort=False)
    if len(keys) == 1:
        table.columns = pd.MultiIndex.from_arrays([table.columns], names=keys)
    return table


def by_denoising_step(study: Study, rows: pd.DataFrame) -> list[Panel]:
    """Open ranks against the denoising step (paper Fig. 5), means over layers and runs; rows: of ranks_by_step.csv."""
    if rows.empty:
        return []
    layers = rows.columns.difference(["step", "run_id"])
    means = rows[["step", "run_id"]].assign(ranks=rows[layers].mean(axis=1))
    means = means.merge(study.finished[["run_id", "adapter", *study.conditions]], on="run_id")
    panels = []
    for facet, part in some(by_condition(means, study.conditions)):
        fig, axis = panel(2.5)
        for adapter in study.adapters:
            own = part[part["adapter"] == adapter].groupby("step")["ranks"].mean()
            if not own.empty:
                style = style_of(study, adapter)
                axis.plot(own.index + 1, own, label=in_figure(adapter), linewidth=1.3, markersize=4, **style)
        where = in_words(facet, study.conditions)
        title = f"open ranks by denoising step{f' ({where})' if where else ''}"
        axis.set_title(title)
        axis.set_xlabel("denoising step (noise to image)")
        axis.set_ylim(bottom=0)
        panels.append(finish(fig, axis, title))
    return numbered(panels)


def by_strength(study: Study, rows: pd.DataFrame) -> list[Panel]:
    """Image metrics against the adapter scale: means, and a band over all seeds."""
    if rows.empty or rows["strength"].nunique() < 2:
        return []
    merged = rows.merge(study.finished[["run_id", "adapter", *study.conditions]], on="run_id")
    panels = []
    for facet, part in some(by_condition(merged, study.conditions)):
        for measure in [column for column in rows if column in METRICS]:
            fig, axis = panel(2.6)
            for adapter in study.adapters:
                own = part[part["adapter"] == adapter].groupby("strength")[measure].agg(["mean", "min", "max"])
                if own.empty:
                    continue
                style = style_of(study, adapter)
                axis.plot(own.index, own["mean"], label=in_figure(adapter), markersize=4, linewidth=1.3, **style)
                axis.fill_between(own.index, own["min"], own["max"], color=style["color"], alpha=0.15, linewidth=0)
            where = in_words(facet, study.conditions)
            title = f"{METRICS[measure].label}{f' ({where})' if where else ''}"
            axis.set_title(title)
            axis.set_xlabel("adapter scale (band: all seeds)")
            panels.append(finish(fig, axis, f"{title} by adapter scale"))
    return numbered(panels)
