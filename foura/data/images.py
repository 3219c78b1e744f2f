"""Images, opened in one way for every family: upright, without transparency, in 8 bits and without a profile."""

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

from foura.errors import UserError
from foura.files import regular

# how the names of image files end
IMAGE_FILES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".apng",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".avif",
)
SMALLEST = 8  # pixels: the shortest side of an image to generate from
THINNEST = 100  # times as long as wide: scaled to a model's size, one such strip would fill the memory
# The formats that are decoded, whatever a file is called; for another one (EPS), Pillow runs a program (Ghostscript).
FORMATS: tuple[str, ...] = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "DIB", "PPM", "ICO", "JPEG2000", "AVIF")
FORMATS += ("TGA", "PCX", "SGI")
DEEP = ("PNG", "PPM")  # formats whose mode "I" holds 16 bits


def open_image(
    image: Any, name: str, mode: str, background: str = "white", smallest: int = 1, any_size: bool = False
) -> Image.Image:
    """An image of Pillow's `mode`, turned as its EXIF data says; of an animated one, the first frame.

    16 bits per channel become 8. CMYK is converted by its colour profile where it has one that can be read.

    Args:
        image: a uint8 array (H, W), the path of a file, or the bytes of one.
        name: what a message calls it.
        background: the colour behind transparent pixels, as `dataset.background` names it.
        smallest: the least number of pixels of its shorter side.
        any_size: `dataset.any_size`: also more pixels than the largest cameras have (179 million).

    Raises:
        UserError: it cannot be read, has pixels of unknown range, or a shape that no photograph has.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image).convert(mode)
    if isinstance(image, str):
        regular(Path(image))
    colour = background_colour(background)
    try:
        opened = ImageOps.exif_transpose(_eight_bits(_loaded(image, name, smallest, any_size)))
        if opened.mode in ("I", "F"):
            raise UserError(f"{name} has 32-bit pixels of unknown range; convert it to 8-bit.")
        return _on_background(_without_profile(opened), colour).convert(mode)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise what their arithmetic raises: struct.error, IndexError, …
        reason = str(error).replace(f" '{image}'", "") if isinstance(image, str) else str(error)
        raise UserError(f"{name} cannot be read as an image ({reason[:200]}); repair it or take it out.") from None


def background_colour(background: str) -> tuple[int, ...]:
    """(red, green, blue) of a colour: its name, "#rrggbb", or another form of Pillow's ImageColor.

    Raises:
        UserError: it is not a colour.
    """
    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError:
        raise UserError(
            f"dataset.background={background} is not a colour: use a name such as white, or '#rrggbb'."
        ) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _loaded(image: Any, name: str, least: int, any_size: bool) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None if any_size else limit
        opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=_formats())
    except Image.DecompressionBombError:
        raise UserError(
            f"{name} has more than {2 * (limit or 0) // 10**6} million pixels; dataset.any_size=true takes it."
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    _check_shape(opened.size, name, least)  # before any pixel is decoded
    opened.load()
    return opened


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel, as far as its range is known; Pillow would clip what is above 255."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in DEEP)):
        return image
    deep, clear, exif = np.asarray(image), image.info.get("transparency"), image.getexif()
    made = Image.fromarray((deep >> 8).astype(np.uint8))
    if isinstance(clear, int):  # the grey value that stands for "transparent"
        made.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    made.info["exif"] = exif.tobytes()
    return made


def _without_profile(image: Image.Image) -> Image.Image:
    """CMYK as RGB, by its colour profile; one that cannot be read counts as none."""
    profile = image.info.get("icc_profile")
    if image.mode != "CMYK" or not profile:
        return image
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, own, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _on_background(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    if not image.has_transparency_data:
        return image
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits; Pillow has the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return Image.alpha_composite(Image.new("RGBA", image.size, (*colour, 255)), image.convert("RGBA"))


def _check_shape(size: tuple[int, int], name: str, least: int) -> None:
    width, height = size
    if min(size) < least:
        raise UserError(f"{name} is {width} x {height} pixels, and {least} are the least; take it out.")
    if max(size) > THINNEST * min(size):
        raise UserError(
            f"{name} is {width} x {height} pixels: more than {THINNEST} times as long as wide; crop it or take it out."
        )
