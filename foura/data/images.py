"""Images: found in folders, and opened in one way."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from foura.errors import UserError
from foura.files import regular

SMALLEST = 8  # pixels: a smaller image cannot be learnt from
THINNEST = 100  # times as long as wide: scaled to a model's size, one such strip would fill the memory


def open_image(image: Any, name: str, mode: str, turned: bool = False) -> Image.Image:
    """An image of Pillow's `mode`; of a moving one the first picture.

    Args:
        turned: as its camera was held, and what is transparent white; pictures too small to be one are refused.

    Raises:
        UserError: it cannot be read, or its values have no known white.
    """
    if isinstance(image, str):
        regular(Path(image))
    try:
        if isinstance(image, np.ndarray):
            opened = Image.fromarray(image)
        else:
            opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
            _check_shape(opened.size, name, SMALLEST if turned else 1)  # before any pixel is decoded
            opened.load()
        if opened.mode.startswith("I;16"):  # Pillow would clip what is above 255
            opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
        if turned:
            opened = ImageOps.exif_transpose(opened)
            if "A" in opened.getbands() or "transparency" in opened.info:
                opened = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA"))
        if opened.mode in ("I", "F"):
            raise UserError(f"{name} holds 32-bit values, whose white nobody knows; convert it to 8 bits.")
        return opened.convert(mode)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise what their arithmetic raises: struct.error, IndexError, …
        reason = str(error).replace(f" '{image}'", "") if isinstance(image, str) else str(error)
        raise UserError(f"{name} cannot be read as an image ({reason[:200]}); repair it or take it out.") from None


def _check_shape(size: tuple[int, int], name: str, least: int) -> None:
    width, height = size
    if min(size) < least:
        raise UserError(f"{name} is {width} x {height} pixels: too small to be a picture; take it out.")
    if max(size) > THINNEST * min(size):
        raise UserError(f"{name} is {width} x {height} pixels: too long and thin to be a picture; take it out.")


def encoded(records: list[Any]) -> list[Any]:
    """The bytes or the path of each image of a column that is not decoded.

    Raises:
        UserError: an item without an image.
    """
    images = [record and (record["path"] if record["bytes"] is None else record["bytes"]) for record in records]
    if not all(images):
        raise UserError(f"item {[bool(image) for image in images].index(False)} of the data has no image; take it out.")
    return images


def image_files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    """The image files in a folder and the folders in it, in order; linked folders are followed, none is read twice.

    Raises:
        UserError: one that is no ordinary file.
    """
    found, seen = [], set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above: the same pictures again and again
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        found += [regular(Path(place, name)) for name in names if name.lower().endswith(extensions)]
    return sorted(found)
