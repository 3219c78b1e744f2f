"""The figure of a run's gates: open ranks by layer and epoch, and how they are distributed over inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foura.escape import in_figure
from foura.figures import is_one_colour, plt, save_figure

TICKS = 12  # along a map at most


def draw_gates(table: list[dict[str, Any]], by_epoch: list[dict[str, float]], title: str, path: Path) -> None:
    """Draw open ranks of each layer by epoch (means over inputs), and which share of inputs opens how many of them.

    A map that would have one colour is a sentence instead.

    Args:
        table: rows of `layer_table`. by_epoch: {"epoch", layer: open ranks}, one per epoch.
    """
    gated = [row for row in table if row.get("open_counts")]
    names, ranks = [row["layer"] for row in gated], np.array([row["rank"] for row in gated])
    shares = np.array([[epoch[name] for epoch in by_epoch] for name in names]) / ranks[:, None]
    counts = np.zeros((len(gated), ranks.max() + 1))
    for place, row in enumerate(gated):
        counts[place, : len(row["open_counts"])] = np.array(row["open_counts"]) / sum(row["open_counts"])
    said = epochs_in_words(shares), inputs_in_words(counts, ranks)
    height = 1.6 if all(said) else 1.9 + 0.22 * len(names)
    fig, axes = plt.subplots(1, 2, figsize=(11, height), layout="constrained")
    maps = [axis for axis, sentence in zip(axes, said, strict=True) if not sentence]
    _map(axes[0], shares, said[0], "epoch", "share of ranks open", [int(row["epoch"]) + 1 for row in by_epoch])
    _map(axes[1], counts, said[1], "number of open ranks", "share of inputs", range(counts.shape[1]))
    for axis in maps:
        axis.set_yticks(range(len(names)), names if axis is maps[0] else [""] * len(names), fontsize=8)
    fig.suptitle(f"{in_figure(title)} · what the gates open", fontsize=10)
    save_figure(fig, path)


def epochs_in_words(shares: np.ndarray) -> str:
    """The sentence in place of a map (layers, epochs) of one colour; empty for one that shows something."""
    low, high = float(shares.min()), float(shares.max())
    if not is_one_colour(low, high):
        return ""
    return f"Every gate of every layer has\n{(low + high) / 2:.1%} of its ranks open\nin every epoch."


def inputs_in_words(counts: np.ndarray, ranks: np.ndarray) -> str:
    """The sentence in place of a map (layers, open ranks) where every input of a layer opens as many ranks."""
    if not is_one_colour(float(counts.max(1).min()), 1.0):
        return ""
    opened = counts.argmax(1)
    some = f"{opened.min()}" if opened.min() == opened.max() else f"{opened.min()} to {opened.max()}, by layer,"
    return f"Within a layer every input opens\nthe same number of ranks:\n{some} of {ranks.max()}."


def _map(axis: Any, values: np.ndarray, said: str, label: str, caption: str, numbers: Sequence[int]) -> None:
    """A map of values (layers, columns), with the columns' numbers, or the sentence."""
    if said:
        axis.axis("off")
        axis.text(0.5, 0.5, said, transform=axis.transAxes, ha="center", va="center")
        return
    drawn = axis.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xlabel(label)
    every = -(-len(numbers) // TICKS)
    axis.set_xticks(range(0, len(numbers), every), numbers[::every])
    axis.figure.colorbar(drawn, ax=axis, label=caption, shrink=0.8)
