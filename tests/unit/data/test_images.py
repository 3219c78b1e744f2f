"""Opening images in one way: orientation, transparency, deep pixels, profiles, animation, and shapes that are refused."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from foura.data.images import SMALLEST, THINNEST, open_image
from foura.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(content, mode: str = "RGB", **options) -> list:
    """The corner pixel and the one at the other end."""
    array = np.array(open_image(content, "x", mode, **options))
    return [array[0, 0].tolist(), array[-1, -1].tolist()]


def png(depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 2 x 1 pixels, written by hand: Pillow cannot write 16-bit colours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\x00" + rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_followed(kind) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    assert open_image(encoded(Image.new("RGB", (30, 20)), kind, exif=exif), "x", "RGB").size == (20, 30)
    assert open_image(encoded(Image.new("L", (30, 20)), kind, exif=exif), "x", "L").size == (20, 30)


def test_orientation_of_sixteen_bits_is_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    content = encoded(Image.fromarray(np.zeros((20, 30), np.uint16)), exif=exif)
    assert open_image(content, "x", "L").size == (20, 30)


CLEAR = {
    "RGBA": encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0))),
    "LA": encoded(Image.new("LA", (20, 20), (0, 0))),
    "a palette with one transparent colour": encoded(Image.new("P", (20, 20), 0), transparency=0),
    "a palette with an alpha for each colour": encoded(Image.new("P", (20, 20), 0), transparency=b"\x00\xff"),
    "a transparent grey": encoded(Image.new("L", (20, 20), 0), transparency=0),
    "a transparent colour": encoded(Image.new("RGB", (20, 20), (0, 0, 0)), transparency=(0, 0, 0)),
    "black and white": encoded(Image.new("1", (20, 20), 0), transparency=0),
    "GIF": encoded(Image.new("P", (20, 20), 0), "GIF", transparency=0),
    "WEBP": encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "WEBP", lossless=True),
    "16-bit grey with alpha": png(16, 4, struct.pack(">4H", 0, 0, 0, 0)),
    "16-bit colours with alpha": png(16, 6, struct.pack(">8H", *[0] * 8)),
    "a transparent 16-bit grey": png(16, 0, struct.pack(">2H", 300, 300), (b"tRNS", struct.pack(">H", 300))),
    "a transparent 16-bit colour": png(
        16, 2, struct.pack(">6H", *[65_535, 300, 0] * 2), (b"tRNS", struct.pack(">3H", 65_535, 300, 0))
    ),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_what_is_transparent_shows_the_background(kind) -> None:
    assert pixels(CLEAR[kind], "L") == [255, 255]
    assert pixels(CLEAR[kind], "RGB") == [[255, 255, 255]] * 2
    assert pixels(CLEAR[kind], "RGB", background="#102030") == [[16, 32, 48]] * 2


def test_half_transparent_is_a_mixture_and_opaque_is_as_it_was() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 51))  # a fifth
    assert pixels(encoded(half))[0] == [255, 204, 204]
    assert pixels(encoded(half), background="black")[0] == [51, 0, 0]
    assert pixels(encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255))))[0] == [1, 2, 3]


def test_a_background_that_is_not_a_colour_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.background=whitish is not a colour"):
        open_image(CLEAR["RGBA"], "x", "RGB", background="whitish")


def test_sixteen_bits_become_eight() -> None:
    grey = np.array([[1_000, 20_000, 65_535]] * 3, np.uint16)
    for content in (encoded(Image.fromarray(grey)), encoded(Image.fromarray(grey), "TIFF")):
        assert np.array(open_image(content, "x", "L"))[0].tolist() == [3, 78, 255]
    deep = b"P5 3 1 65535 " + grey[0].astype(">u2").tobytes()
    assert np.array(open_image(deep, "x", "L"))[0].tolist() == [3, 78, 255]
    assert pixels(png(16, 2, struct.pack(">6H", 65_535, 20_000, 0, 0, 20_000, 65_535))) == [[255, 78, 0], [0, 78, 255]]


def test_cmyk_is_converted_by_its_profile_where_it_has_one() -> None:
    red = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    assert pixels(encoded(red, "TIFF")) == [[255, 0, 0]] * 2
    assert pixels(encoded(red, "TIFF", icc_profile=b"no profile")) == [[255, 0, 0]] * 2
    not_of_cmyk = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixels(encoded(red, "TIFF", icc_profile=not_of_cmyk)) == [[255, 0, 0]] * 2


def press(*inks: tuple[int, int, int]) -> bytes:
    """An ICC profile of a press, by hand (ICC.1:2001-04): a table from CMYK to Lab.

    Args:
        inks: Lab of cyan alone and of magenta alone. No ink is white; every other mixture is black, so that the darkest
            colour needs no black point compensation.
    """
    grid = {(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): inks[0], (0, 1, 0, 0): inks[1]}
    corners = (grid.get(corner, (0, 0, 0)) for corner in itertools.product((0, 1), repeat=4))
    table = b"".join(bytes((round(2.55 * light), a + 128, b + 128)) for light, a, b in corners)
    one, ramp = 1 << 16, bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, one)
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"wtpt": b"XYZ " + bytes(4) + white, b"A2B0": lut + 4 * ramp + table + 3 * ramp}
    start = 128 + 4 + 12 * len(tags)
    index, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        index += name + struct.pack(">2I", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp"
    )
    return (head + bytes(28) + white).ljust(128, b"\0") + index + body


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_converted_as_its_own_profile_says(kind) -> None:
    """Cyan of this press is a grey of L* 50, which is (119, 119, 119) in sRGB, and magenta a red; without it they are not."""
    profile = press((50, 0, 0), (50, 70, 50))

    def shown(inks: tuple[int, ...], **options) -> list[int]:
        return pixels(encoded(Image.new("CMYK", (20, 20), inks), kind, **options))[0]

    assert np.abs(np.subtract(shown((255, 0, 0, 0), icc_profile=profile), 119)).max() <= 2
    red, green, blue = shown((0, 255, 0, 0), icc_profile=profile)
    assert red > 190 and green < 40 and blue < 60
    assert shown((0, 0, 0, 0), icc_profile=profile) == [255, 255, 255]
    cyan = shown((255, 0, 0, 0))
    assert cyan[0] < 5 and cyan[1] > 250


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind) -> None:
    frames = [Image.new("RGB", (20, 20), (shade, shade, shade)) for shade in (0, 255)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert pixels(content)[0][0] < 5


def test_an_array_is_taken_as_it_is() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (np.array(open_image(array, "x", "L")) == array).all()


@pytest.mark.parametrize(
    ("size", "smallest", "words"),
    [
        ((SMALLEST - 1, 50), SMALLEST, f"{SMALLEST} are the least"),
        ((THINNEST + 1, 1), 1, "times as long as wide"),
    ],
)
def test_shapes_that_no_photograph_has_are_refused(size, smallest, words) -> None:
    with pytest.raises(UserError, match=words):
        open_image(encoded(Image.new("L", size)), "x", "L", smallest=smallest)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(mode) -> None:
    with pytest.raises(UserError, match="has 32-bit pixels of unknown range; convert it to 8-bit"):
        open_image(encoded(Image.new(mode, (20, 20)), "TIFF"), "x", "L")
