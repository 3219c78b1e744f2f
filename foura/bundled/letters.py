"""Coloured letters for the bundled UNet: the plain style that it is pretrained on, and two styles to adapt it to.

plain: any light ink on any dark paper, or the other way round, each of one colour. fire: a flame on black; its ink runs
from yellow at the top to red at the foot, and glows. ice: pale blue on white, with a dark blue edge below. The caption names
the letter alone ("letter A"), so that an adapter has to bring the style, as in the paper's style transfer (sec. 5.2).
"""

from __future__ import annotations

import functools
import string

import numpy as np

from foura.bundled.glyphs import fields_of

LETTERS = string.ascii_uppercase
STYLES = ("plain", "fire", "ice")
SIZE = 16  # side of an image, pixels


def caption(letter: str) -> str:
    """The caption of a letter's image."""
    return f"letter {letter}"


def render_letters(count: int, seed: int, style: str) -> tuple[np.ndarray, list[str]]:
    """Render `count` letters, those of the alphabet in turn; the same seed gives the same images.

    Args:
        style: one of STYLES.

    Returns:
        (images uint8 (count, 16, 16, 3), captions).

    Raises:
        ValueError: an unknown style.
    """
    import torch

    if style not in STYLES:
        raise ValueError(f"style={style!r} is not known; choose one of {', '.join(STYLES)}")
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(count) % len(LETTERS)
    ink = _ink(which, generator)  # (count, 1, 16, 16)
    images = {"plain": _plain, "fire": _fire, "ice": _ice}[style](ink, generator)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels, [caption(LETTERS[index]) for index in which.tolist()]


def _ink(which, generator):
    """Coverage of ink in 0..1, (n, 1, 16, 16), of letters in random fonts, slightly rotated, moved and scaled."""
    import torch
    from torch.nn import functional

    fields, first, variants = _fields()
    n = len(which)

    def uniform(low: float, high: float):
        return low + (high - low) * torch.rand(n, generator=generator)

    pick = (torch.rand(n, generator=generator) * variants[which]).long()
    field = fields[first[which] + pick].unsqueeze(1)
    angle, width, height = uniform(-0.1, 0.1), uniform(0.9, 1.15), uniform(0.85, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cos * width, -sin * height, uniform(-0.08, 0.08)], 1)
    down = torch.stack([sin * width, cos * height, uniform(-0.08, 0.08)], 1)
    grid = functional.affine_grid(torch.stack([across, down], 1), [n, 1, 64, 64], align_corners=False)
    distance = functional.grid_sample(field, grid, padding_mode="border", align_corners=False)
    thicker = uniform(0.0, 2.0).view(n, 1, 1, 1)
    return functional.avg_pool2d(torch.sigmoid(2 * (distance + thicker)), 64 // SIZE)


@functools.cache
def _fields():
    import torch

    by_letter = [fields_of(letter) for letter in LETTERS]
    variants = torch.tensor([len(fields) for fields in by_letter])
    first = torch.cumsum(variants, 0) - variants
    return torch.from_numpy(np.stack([field for fields in by_letter for field in fields])), first, variants


def _plain(ink, generator):
    import torch

    n = len(ink)
    dark = 0.35 * torch.rand(n, 3, 1, 1, generator=generator)
    light = 1 - 0.45 * torch.rand(n, 3, 1, 1, generator=generator)
    swap = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    return torch.where(swap, dark + (light - dark) * ink, light + (dark - light) * ink)


def _fire(ink, generator):
    import torch
    from torch.nn import functional

    n = len(ink)
    height = torch.linspace(0, 1, SIZE).view(1, 1, SIZE, 1)
    flicker = 0.15 * torch.randn(
        n, 1, 1, SIZE, generator=generator
    )  # the edge of the flame differs from column to column
    mix = (height + flicker).clamp(0, 1)
    flame = torch.tensor([1.0, 0.95, 0.3]).view(1, 3, 1, 1) * (1 - mix)
    flame = flame + torch.tensor([0.85, 0.1, 0.0]).view(1, 3, 1, 1) * mix
    glow = functional.avg_pool2d(ink, 5, stride=1, padding=2) * torch.tensor([0.6, 0.2, 0.0]).view(1, 3, 1, 1)
    return torch.maximum(flame * ink, glow)


def _ice(ink, generator):
    import torch
    from torch.nn import functional

    n = len(ink)
    frost = 0.12 * torch.rand(n, 1, SIZE, SIZE, generator=generator)  # crystals: speckles in the body of a letter
    body = torch.tensor([0.55, 0.8, 1.0]).view(1, 3, 1, 1) - frost
    edge = torch.tensor([0.1, 0.25, 0.6]).view(1, 3, 1, 1)
    below = functional.pad(ink, (0, 0, 1, 0))[:, :, :-1]  # the letter's shadow, a pixel down
    return torch.ones(n, 3, 1, 1) * (1 - torch.maximum(ink, below)) + edge * (below - ink).clamp(min=0) + body * ink
