"""The look of all figures: one panel per SVG, readable at the width of a phone, for light and dark pages and in print."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import ScalarFormatter

from foura.figures import plt
from foura.report.study import Study

WIDTH = 4.0  # inches, 384 CSS pixels: a phone's width, so that type is never scaled down by much
INK, QUIET, FAINT, PAPER = "#1f2328", "#6a737d", "#c4cad1", "#ffffff"
# Okabe and Ito's colours without yellow, told apart with every kind of colour vision; with the markers 56 styles
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b5b5b")
MARKERS = "osD^vPX*"
DARK = {  # each ink of a light page on a dark one
    INK: "#e6e9ed",
    QUIET: "#9aa4af",
    FAINT: "#4a525c",
    PAPER: "#14171b",
    "#0072b2": "#4aa8e0",
    "#5b5b5b": "#b3b3b3",
    "#009e73": "#35c49a",
    "#1a7f37": "#57c878",  # verdicts
    "#cf222e": "#ff7b72",
    "#0969da": "#6cb6ff",
}
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # measures the text; it is drawn in the reader's own font, which is narrower
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: small and searchable
    "svg.hashsalt": "foura",  # the same figure is the same file
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
plt.rcParams.update(RC)
FONT = re.compile(rb"font-family: [^;\"]*")


@dataclass(frozen=True)
class Panel:
    """One SVG: the end of its file's name ("" if it is the only one of its figure), and its text for screen readers."""

    suffix: str
    svg: bytes
    alt: str


def style_of(study: Study, adapter: str) -> dict[str, Any]:
    """Colour and marker of an adapter, the same in all figures of a study."""
    number = study.adapters.index(adapter)
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def panel(height: float, width: float = WIDTH) -> tuple[Any, Any]:
    """(figure, axis) in the common style."""
    return plt.subplots(figsize=(width, height), layout="constrained")


def legend(fig: Any, axis: Any) -> None:
    """Legend above the axis, one entry per name, without taking height from the axis."""
    entries = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if not entries:
        return
    longest = max(len(name) for name in entries)
    columns = max(1, min(len(entries), int(fig.get_figwidth() * 11 / (longest + 5))))
    fig.set_figheight(fig.get_figheight() + 0.19 * -(-len(entries) // columns))
    fig.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        columnspacing=1.2,
        labelcolor=INK,
    )


def finish(fig: Any, axis: Any, alt: str, named: bool = True) -> Panel:
    """The figure as a panel, with a legend if `named`."""
    axis.tick_params(labelsize=8.5)
    for side in (axis.xaxis, axis.yaxis):
        if isinstance(side.get_major_formatter(), ScalarFormatter):
            side.get_major_formatter().set_useOffset(False)
    if named:
        legend(fig, axis)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(fig)
    return Panel("", FONT.sub(b"font-family: system-ui, sans-serif", buffer.getvalue()), alt)


def on_page(svg: bytes) -> str:
    """An SVG as the source of an <img>, which follows the reader's light or dark mode as the page does."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    # text without a fill of its own is black
    rules += f"text:not([style*='fill']){{fill:{DARK[INK]}}}"
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>".encode()
    head, found, body = svg.partition(b"<defs>")
    return image(head + style + found + body, "svg+xml")


def image(data: bytes, kind: str) -> str:
    """An image as the source of an <img>."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def numbered(panels: Sequence[Panel]) -> list[Panel]:
    """The panels of a figure with suffixes 1, 2, …; a single one without."""
    if len(panels) == 1:
        return [Panel("", panels[0].svg, panels[0].alt)]
    return [Panel(f"-{number}", one.svg, one.alt) for number, one in enumerate(panels, 1)]
