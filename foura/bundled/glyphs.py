"""Glyphs that the bundled ViT is pretrained on: letters, Greek and some signs (no digits), from fonts of installed packages.

Each (font, character) is rendered when it is first needed, as a signed distance field, which lets the batched sampler below
move, bend and thicken a glyph with one `grid_sample` and one threshold. The result is counted in 4 x 4 blocks of a 32 x 32
bitmap, which is how scikit-learn's 8 x 8 digits were made.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

# One entry is one class. Characters that size normalisation or the affine maps make alike share an entry.
# Characters with the shape of a digit (superscripts, Cyrillic ze) are left out on purpose.
GLYPH_CLASSES = [
    "A", "a", "B\u03b2", "b", "cC", "D", "d", "E", "e", "F", "f", "G", "g", "H", "h", "iI\u03b9l", "jJ",
    "kK\u03ba", "L", "M", "m", "N", "n\u03b7", "oO", "pP\u03c1", "Q", "q", "R", "r", "sS", "T\u03c4", "t",
    "uU", "vV\u03bd", "wW\u03c9", "xX\u03c7", "Y", "y", "zZ", "\u03b1", "\u03b3", "\u03b4", "\u03b5",
    "\u03b6", "\u03b8\u0398", "\u03bb", "\u039b", "\u03bc", "\u03be", "\u03c0\u03a0", "\u03c3",
    "\u03c6\u03a6", "\u03c8\u03a8", "\u0393", "\u0394", "\u039e", "\u03a3", "\u03a9", "&", "?", "!", "@",
    "#", "$", "%", "+", "*", "<", ">",
]  # fmt: skip

# Fonts with the plain Latin layout. The cm fonts have Greek and signs at odd code points: only their letters are used.
_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10", "cmmi10",
)  # fmt: skip
_CELL = 64  # side of a distance field, pixels
_BODY = 44  # height of the glyph inside it: the rest is room for thick strokes
_BODY_WIDTH = 36  # wider glyphs are squeezed: a digit is about 3/4 as wide as it is high
_CHUNK = 4096  # images rendered at a time, which bounds the memory


def render_glyphs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Render `count` random glyphs; the same seed gives the same arrays.

    Args:
        count: number of images, at least 1.
        seed: seeds every random choice (class, font, map, stroke width, blur, noise).

    Returns:
        images: uint8 of shape (count, 16, 16), 0 is paper and 255 is full ink.
        labels: int64 of shape (count,), indices into `GLYPH_CLASSES`.

    Raises:
        ValueError: `count` is below 1.
        ImportError: matplotlib, Pillow, SciPy or torch is not installed.
    """
    import torch

    from foura.bundled.digits import upsample_ink_counts

    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    glyphs, first, variants = _glyphs()
    generator = torch.Generator().manual_seed(seed)
    images = np.empty((count, 16, 16), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        label = torch.randint(len(GLYPH_CLASSES), (size,), generator=generator)
        pick = (torch.rand(size, generator=generator) * variants[label]).long().clamp(max=variants[label] - 1)
        fields = np.stack([_distance_field(*glyphs[which]) for which in (first[label] + pick).tolist()])
        ink = _draw(torch.from_numpy(fields), generator)
        images[start : start + size] = upsample_ink_counts(ink.numpy())
        labels[start : start + size] = label.numpy()
    return images, labels


def _draw(field, generator):
    """Warp distance fields (n, 64, 64) at random; returns ink counts (n, 8, 8), float in 0..16."""
    import torch
    from torch.nn import functional

    n = len(field)

    def uniform(low: float, high: float, *shape: int):
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def bend(amplitude: float, knots: int, channels: int):
        """A smooth random field: strokes of a hand wander where printed ones are straight."""
        noise = torch.randn(n, channels, knots, knots, generator=generator) * amplitude
        return functional.interpolate(noise, size=(32, 32), mode="bicubic", align_corners=True)

    # strokes have one random width per image, whatever the font: erode or dilate to it, but erase no glyph
    half_width = field.flatten(1).amax(1)
    grow = (uniform(3.5, 7.5) - half_width).maximum(-0.5 * half_width)
    angle, shear = uniform(-0.22, 0.22), uniform(-0.35, 0.35)
    # the grid maps output to input: a scale of (inked height / cell) makes a glyph fill the height
    height = (_BODY + 2 * grow) / _CELL * uniform(0.92, 1.1)
    width = (_BODY + 2 * grow) / _CELL * uniform(0.95, 1.6)
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cos * width, (shear * cos - sin) * height, uniform(-0.1, 0.1)], 1)
    down = torch.stack([sin * width, (shear * sin + cos) * height, uniform(-0.06, 0.06)], 1)
    theta = torch.stack([across, down], 1)
    grid = functional.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    grid = grid + bend(0.05, 4, 2).permute(0, 2, 3, 1)
    distance = functional.grid_sample(field.unsqueeze(1), grid, padding_mode="border", align_corners=False)
    distance = distance + grow.view(n, 1, 1, 1) + bend(0.5, 8, 1)
    softness = uniform(0.2, 1.5, 1, 1, 1)  # pixels of the field: from a hard pen to a blurred one
    counts = 16 * functional.avg_pool2d(torch.sigmoid(distance / softness), 4).squeeze(1)
    counts = counts + torch.randn(counts.shape, generator=generator) * uniform(0.0, 0.6, 1, 1)
    return counts.round().clamp(0, 16)


@functools.cache
def _glyphs():
    """[(number of a font, character)] by class; per class its first place in the list, and its number of places."""
    import torch

    by_class = [[glyph for character in characters for glyph in _of(character)] for characters in GLYPH_CLASSES]
    variants = torch.tensor([len(glyphs) for glyphs in by_class])
    return [glyph for glyphs in by_class for glyph in glyphs], torch.cumsum(variants, 0) - variants, variants


def fields_of(character: str) -> list[np.ndarray]:
    """The signed distance field (64, 64), positive in the ink, of a character in each font that has it."""
    return [_distance_field(*glyph) for glyph in _of(character)]


def _of(character: str) -> list[tuple[int, str]]:
    """(number of the font, character) of each font that has it."""
    # without a table of the font's characters, trust it only with ASCII letters
    letter = character.isascii() and character.isalpha()
    return [
        (number, character)
        for number, (_, table) in enumerate(_fonts())
        if (table.get_char_index(ord(character)) if table else letter)
    ]


@functools.cache
def _fonts() -> list[tuple[Any, Any]]:
    """(font, table of its characters or None) of every font used."""
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts: list[tuple[Any, Any]] = [(ImageFont.load_default(64), None)]
    for name in _FONTS:
        path = folder / f"{name}.ttf"
        table = None if name.startswith("cm") else FT2Font(str(path))
        fonts.append((ImageFont.truetype(str(path), 64), table))
    return fonts


@functools.cache
def _distance_field(font: int, character: str) -> np.ndarray:
    """Signed distance (pixels, positive inside) of one character, size-normalised and centred, float32."""
    from PIL import Image, ImageDraw
    from scipy.ndimage import distance_transform_edt

    canvas = Image.new("L", (192, 192))
    ImageDraw.Draw(canvas).text((48, 48), character, fill=255, font=_fonts()[font][0])
    canvas = canvas.crop(canvas.getbbox())
    width = min(_BODY_WIDTH, max(1, round(canvas.width * _BODY / canvas.height)))
    canvas = canvas.resize((width, _BODY), Image.Resampling.BILINEAR)
    cell = Image.new("L", (_CELL, _CELL))
    cell.paste(canvas, ((_CELL - canvas.width) // 2, (_CELL - canvas.height) // 2))
    ink = np.asarray(cell) > 127
    return (distance_transform_edt(ink) - distance_transform_edt(~ink)).astype(np.float32)
