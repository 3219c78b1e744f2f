"""The forest plot: every difference from the baseline with its interval, its margin and its verdict in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from foura.report.study import Measure, Study, in_words
from foura.report.style import FAINT, INK, QUIET, WIDTH, Panel, finish, numbered, panel, style_of

ROWS = 14  # in a panel
HEIGHT = 0.34  # inches of a row: a line of text above a line for the interval
COLOURS = {"better": "#1a7f37", "worse": "#cf222e", "equivalent": "#0969da", "undecided": QUIET}
SIGNS = {"better": "▲ better", "worse": "▼ worse", "equivalent": "≈ equivalent", "undecided": "? undecided"}


def forest(study: Study, table: pd.DataFrame, measure: Measure) -> list[Panel]:
    """The comparisons of a measure, up to 14 in a panel; if there are more, sorted by adapter, and an adapter's together.

    Args:
        table: of `compare.comparisons`.
    """
    if table.empty:
        return []
    parts = [table] if len(table) <= ROWS else _packed(table)
    title = f"{measure.label}: difference from {study.baseline}"
    panels, span = [], _span(table) if len(parts) > 1 else None
    for part in parts:
        rows = part.to_dict("records")
        labels = [", ".join(filter(None, (row["adapter"], in_words(row, study.conditions)))) for row in rows]
        styles = [style_of(study, row["adapter"]) for row in rows]
        panels.append(draw(rows, labels, styles, title, measure.more_is_better, span))
    return numbered(panels)


def _span(table: pd.DataFrame) -> tuple[float, float]:
    """Ends of the axis that the panels of a measure share, so that they can be compared."""
    ends = [0.0, *table[["difference", "low", "high"]].to_numpy().ravel()]
    ends += [side * margin for margin in table["margin"] if math.isfinite(margin) for side in (-1, 1)]
    ends = [end for end in ends if math.isfinite(end)]
    pad = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - pad, max(ends) + pad


def _packed(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Parts of up to 14 rows, each of whole adapters where that can be."""
    parts: list[pd.DataFrame] = []
    for _, group in table.groupby("adapter", sort=False):
        if parts and len(parts[-1]) + len(group) <= ROWS:
            parts[-1] = pd.concat([parts[-1], group])
        else:
            parts += [group.iloc[start : start + ROWS] for start in range(0, len(group), ROWS)]
    return parts


def draw(
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    styles: Sequence[Mapping[str, Any]],
    title: str,
    more_is_better: bool,
    span: tuple[float, float] | None = None,
) -> Panel:
    """One forest plot.

    Args:
        rows: with difference, low, high, inner_low, inner_high, margin and verdict.
        labels: of the rows. styles: colour and marker of each.
        span: ends of the axis; else those of the rows.
    """
    fig, axis = panel(0.95 + HEIGHT * len(rows), WIDTH)
    for place, (row, label, style) in enumerate(zip(rows, labels, styles, strict=True)):
        if math.isfinite(row["margin"]):
            axis.fill_betweenx(
                [place - 0.5, place + 0.5], -row["margin"], row["margin"], color=FAINT, alpha=0.45, linewidth=0
            )
        if math.isfinite(row["low"]):
            axis.plot([row["low"], row["high"]], [place + 0.2] * 2, color=style["color"], linewidth=1)
            axis.plot([row["inner_low"], row["inner_high"]], [place + 0.2] * 2, color=style["color"], linewidth=2.6)
        axis.plot([row["difference"]], [place + 0.2], linestyle="", markersize=5.5, **style)
        for text, x, side, ink in ((label, 0.0, "left", INK), (SIGNS[row["verdict"]], 1.0, "right", None)):
            ink = ink or COLOURS[row["verdict"]]
            axis.text(x, place - 0.2, text, transform=axis.get_yaxis_transform(), ha=side, va="center",
                      fontsize=8.5, color=ink, fontweight="bold" if side == "right" else "normal")  # fmt: skip
    axis.axvline(0, color=INK, linewidth=0.8, zorder=0)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_title(title)
    axis.locator_params(axis="x", nbins=5)
    if span is not None:
        axis.set_xlim(*span)
    left, right = axis.get_xlim()
    directions = "worse ←   → better" if more_is_better else "better ←   → worse"
    axis.set_xlabel(directions, color=QUIET, fontsize=8.5, x=-left / (right - left))
    said = "; ".join(f"{label}: {row['verdict']}" for label, row in zip(labels, rows, strict=True))
    return finish(fig, axis, f"{title}. {said}", named=False)
