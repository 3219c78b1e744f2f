"""Opening images: orientation, transparency, deep pixels, and shapes that are refused."""

import io

import numpy as np
import pytest
from PIL import Image

from foura.data.images import SMALLEST, THINNEST, open_image
from foura.errors import UserError


def encoded(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def test_exif_orientation_is_followed_where_asked() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    content = encoded(Image.new("RGB", (30, 20)), exif=exif)
    assert open_image(content, "x", "RGB").size == (30, 20)
    assert open_image(content, "x", "RGB", upright=True).size == (20, 30)


def test_transparent_pixels_become_white_where_asked() -> None:
    content = encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)))
    assert np.array(open_image(content, "x", "RGB")).max() == 0
    assert np.array(open_image(content, "x", "RGB", upright=True)).min() == 255


def test_an_array_is_taken_as_it_is() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (np.array(open_image(pixels, "x", "L")) == pixels).all()


@pytest.mark.parametrize(
    ("size", "upright", "words"),
    [
        ((SMALLEST - 1, 50), True, f"{SMALLEST} are the least"),
        ((THINNEST + 1, 1), False, "times as long as wide"),
    ],
)
def test_shapes_that_no_photograph_has_are_refused(size, upright, words) -> None:
    content = encoded(Image.new("L", size))
    with pytest.raises(UserError, match=words):
        open_image(content, "x", "L", upright)


def test_pixels_of_unknown_range_are_refused() -> None:
    out = io.BytesIO()
    Image.new("F", (20, 20)).save(out, "TIFF")
    with pytest.raises(UserError, match="has 32-bit pixels of unknown range; convert it to 8-bit"):
        open_image(out.getvalue(), "x", "L")
