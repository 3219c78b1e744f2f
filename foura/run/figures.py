"""The figures of one run: learning curves, and ranks and updates layer by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from foura.escape import in_figure
from foura.figures import GREY, TRAIN, VALIDATION, plt, save_figure
from foura.metrics import METRICS


def draw_curves(history: list[dict[str, float]], metrics: Sequence[str], selected: int, title: str, path: Path) -> None:
    """Draw each metric by epoch, training part against validation, and the gap of the last one; mark the selected epoch."""
    epochs = [row["epoch"] + 1 for row in history]
    fig, axes = plt.subplots(1, len(metrics) + 1, figsize=(3.7 * (len(metrics) + 1), 3.2), layout="constrained")
    for axis, metric in zip(axes, metrics, strict=False):
        axis.plot(epochs, [row[f"train_eval/{metric}"] for row in history], color=TRAIN, label="train")
        axis.plot(epochs, [row[f"val/{metric}"] for row in history], color=VALIDATION, label="validation")
        axis.set_title(METRICS[metric].label)
    axes[0].legend(frameon=False)
    axes[-1].plot(epochs, [row[f"gap/{metrics[-1]}"] for row in history], color=GREY)
    axes[-1].axhline(0, color="black", linewidth=0.5)
    axes[-1].set_title(f"gap in {METRICS[metrics[-1]].label}")
    for axis in axes:
        axis.axvline(selected + 1, color=GREY, linestyle=":", linewidth=1)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("epoch (larger gap: more overfitting)")
    fig.suptitle(f"{in_figure(title)} · dotted: selected epoch", fontsize=10)
    save_figure(fig, path)


def draw_layers(table: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw the open ranks of each layer (bar) out of its rank (outline), and the norm of each layer's update."""
    names = [row["layer"] for row in table]
    ranked = all(row["effective_rank"] is not None for row in table)
    height = 1.6 + 0.22 * len(names)
    fig, axes = plt.subplots(1, 2 if ranked else 1, figsize=(10, height), layout="constrained", squeeze=False)
    places = range(len(names))
    if ranked:
        axis = axes[0, 0]
        axis.barh(places, [row["rank"] for row in table], color="none", edgecolor=GREY, linewidth=0.6, label="rank")
        axis.barh(places, [row["effective_rank"] for row in table], color=TRAIN, label="open ranks")
        axis.set_title("open ranks (mean number of open gates)")
        axis.set_xlim(0, 1.02 * max(max(row["rank"], row["effective_rank"]) for row in table))
    axes[0, -1].barh(places, [row["delta_norm"] or 0.0 for row in table], color=VALIDATION)
    axes[0, -1].set_title("size of the update, ‖ΔW‖")
    for index, axis in enumerate(axes[0]):
        axis.set_yticks(places, names if index == 0 else [""] * len(names), fontsize=8)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.spines[["top", "right"]].set_visible(False)
    fig.suptitle(in_figure(title), fontsize=10)
    save_figure(fig, path)
