"""Shared by all figures: matplotlib without a window and without mathematics in names, the colours, and saving."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # runs happen on machines without a screen
import matplotlib.pyplot as plt

from foura.atomic import replacing

plt.rcParams["text.parse_math"] = False  # a name may have a $ in it
warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in another script is drawn as boxes

__all__ = ["GREY", "TRAIN", "VALIDATION", "is_one_colour", "plt", "save_figure"]

TRAIN, VALIDATION, GREY = "#3b6ea8", "#c8553d", "#8a8a8a"

ONE_COLOUR = 0.01  # a range of shares, from 0 to 1, that a map would not show


def is_one_colour(low: float, high: float) -> bool:
    """True if a map of shares between these would have one colour, so that a sentence says more."""
    return high - low < ONE_COLOUR


def save_figure(fig: Any, path: Path) -> None:
    """Write a figure as the kind of file that the path's suffix names, and close it."""
    with replacing(path) as scratch:
        fig.savefig(scratch, dpi=130, format=path.suffix.removeprefix("."))
    plt.close(fig)
