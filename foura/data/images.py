"""Images: found in folders, and opened in one way."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from foura.errors import UserError
from foura.files import regular

SMALLEST = 8  # pixels: the shortest side of an image to generate from
THINNEST = 100  # times as long as wide: scaled to a model's size, one such strip would fill the memory


def open_image(image: Any, name: str, mode: str, upright: bool = False) -> Image.Image:
    """An image of Pillow's `mode`; of an animated one, the first frame.

    Args:
        image: a uint8 array (H, W), the path of a file, the bytes of one, or a Pillow image.
        name: what a message calls it.
        upright: turn it as its EXIF data says, put transparent pixels on white, and refuse it below `SMALLEST` pixels.

    Raises:
        UserError: it cannot be read, has pixels of unknown range, or a shape that no photograph has.
    """
    if isinstance(image, str):
        regular(Path(image))
    try:
        opened = _loaded(image, name, SMALLEST if upright else 1)
        if opened.mode.startswith("I;16"):  # Pillow would clip what is above 255
            opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
        if upright:
            opened = _on_white(ImageOps.exif_transpose(opened))
        if opened.mode in ("I", "F"):
            raise UserError(f"{name} has 32-bit pixels of unknown range; convert it to 8-bit.")
        return opened.convert(mode)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise what their arithmetic raises: struct.error, IndexError, …
        reason = str(error).replace(f" '{image}'", "") if isinstance(image, str) else str(error)
        raise UserError(f"{name} cannot be read as an image ({reason[:200]}); repair it or take it out.") from None


def _loaded(image: Any, name: str, least: int) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    _check_shape(opened.size, name, least)  # before any pixel is decoded
    opened.load()
    return opened


def _on_white(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def _check_shape(size: tuple[int, int], name: str, least: int) -> None:
    width, height = size
    if min(size) < least:
        raise UserError(f"{name} is {width} x {height} pixels, and {least} are the least; take it out.")
    if max(size) > THINNEST * min(size):
        raise UserError(
            f"{name} is {width} x {height} pixels: more than {THINNEST} times as long as wide; crop it or take it out."
        )


def image_files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    """The image files in a folder and the folders in it, sorted; linked folders are followed, and none is read twice.

    Raises:
        UserError: one that is not an ordinary file.
    """
    found, seen = [], set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above it would lead to the same images again and again
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        found += [regular(Path(place, name)) for name in names if name.lower().endswith(extensions)]
    return sorted(found)
