"""Grids of generated pictures, and figures of what was measured on them."""

import csv
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch import Tensor

from foura.run.figures import GREY, TRAIN, VALIDATION, save_figure


def picture_grid(rows: list[Tensor], names: list[str], path: Path) -> None:
    """Rows of pictures (n, 3, H, W) in 0..1, each with its name."""
    columns = max(len(row) for row in rows)
    fig, axes = plt.subplots(
        len(rows), columns, figsize=(1.0 * columns + 1.2, 1.0 * len(rows) + 0.2), squeeze=False, layout="constrained"
    )
    for line, row, name in zip(axes, rows, names, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, picture in zip(line, row, strict=False):
            axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    save_figure(fig, path)


def draw_strengths(rows: list[dict[str, Any]], path: Path) -> None:
    """Each measure against the strength of the adapter."""
    measures = [key for key in rows[0] if key != "strength"]
    fig, axes = plt.subplots(1, len(measures), figsize=(2.8 * len(measures), 2.8), layout="constrained", squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        axis.plot(
            [row["strength"] for row in rows], [row[measure] for row in rows], color=TRAIN, marker="o", markersize=3
        )
        axis.set_title(measure.replace("_", " "))
        axis.set_xlabel("strength")
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(fig, path)


def draw_ranks_by_step(rows: list[dict[str, Any]], path: Path) -> None:
    """Open ranks against the denoising step, a line a layer (paper Fig. 5), coloured by where in the UNet it is."""
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
    axis.set_xlabel("denoising step (noise to picture)")
    axis.set_ylabel("open ranks")
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(fig, path)


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
