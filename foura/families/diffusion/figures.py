"""Grids of generated images, and figures of their metrics."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from foura.figures import GREY, TRAIN, VALIDATION, plt, save_figure


def image_grid(rows: Sequence[Tensor], names: Sequence[str], path: Path) -> None:
    """Rows of images (n, 3, H, W) in 0..1, each with its name."""
    columns = max(len(row) for row in rows)
    fig, axes = plt.subplots(
        len(rows), columns, figsize=(1.0 * columns + 1.2, 1.0 * len(rows) + 0.2), squeeze=False, layout="constrained"
    )
    for line, row, name in zip(axes, rows, names, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, image in zip(line, row, strict=False):
            axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    save_figure(fig, path)


def draw_scales(rows: list[dict[str, Any]], path: Path) -> None:
    """Each metric against the adapter scale (the column "strength")."""
    metrics = [key for key in rows[0] if key != "strength"]
    fig, axes = plt.subplots(1, len(metrics), figsize=(2.8 * len(metrics), 2.8), layout="constrained", squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        axis.plot(
            [row["strength"] for row in rows], [row[metric] for row in rows], color=TRAIN, marker="o", markersize=3
        )
        axis.set_title(metric.replace("_", " "))
        axis.set_xlabel("adapter scale")
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(fig, path)


def draw_ranks_by_step(rows: list[dict[str, Any]], path: Path) -> None:
    """Open ranks against the denoising step, a line per layer (paper Fig. 5), coloured by its part of the UNet."""
    layers = [key for key in rows[0] if key != "step"]
    parts = {"down": TRAIN, "mid": GREY, "up": VALIDATION}
    fig, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for layer in layers:
        part = re.search(r"(down|mid|up)_block", layer)
        colour = parts[part.group(1)] if part else "black"
        axis.plot(
            [row["step"] + 1 for row in rows], [row[layer] for row in rows], color=colour, linewidth=0.9, alpha=0.8
        )
    for name, colour in parts.items():
        axis.plot([], [], color=colour, label=name)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set_xlabel("denoising step (noise to image)")
    axis.set_ylabel("open ranks")
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(fig, path)
