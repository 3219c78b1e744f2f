"""Malformed image files are read or refused in one sentence; none hangs, none fills the memory."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from foura.data.images import SMALLEST, open_image
from foura.data.listing import data_files
from foura.families.diffusion.data import prepare_captioned as prepare_pictures
from foura.families.diffusion.sources import open_captioned
from foura.families.images.data import prepare
from foura.families.images.sources import open_source
from foura.schema import ColumnsConfig, DatasetConfig
from tests.helpers.hostile import damaged, refused, try_all

DAMAGED, PARQUET = 3000, 400  # examples of make test-all


def config(path: Path | str, source: str, **fields):
    return OmegaConf.structured(DatasetConfig(name="test", source=source, path=str(path), **fields))


def file(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = 6  # upright
    return found


def whole() -> list[bytes]:
    """One of each kind that users have."""
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    moving = {"save_all": True, "append_images": [colours.rotate(90), colours.rotate(180)]}
    return [
        file(colours, "PNG"),
        file(colours, "JPEG", exif=exif()),
        file(colours.convert("CMYK"), "JPEG"),
        file(colours.convert("P"), "GIF", **moving),
        file(colours, "TIFF", compression="tiff_lzw"),
        file(colours, "TIFF", compression="tiff_deflate"),
        file(colours.convert("RGBA"), "PNG"),
        file(colours.convert("P"), "PNG", transparency=3),
        file(Image.fromarray(np.full((20, 20), 40_000, np.uint16)), "PNG"),
        file(colours.convert("1"), "PNG"),
        file(colours.convert("LAB"), "TIFF"),
        file(colours.convert("F"), "TIFF"),
        file(colours.convert("I"), "TIFF"),
        file(colours, "WEBP"),
        file(colours, "BMP"),
        file(colours, "PPM"),
        file(colours, "ICO"),
    ]


def png(width: int, height: int, pixels: bytes = b"", *more: bytes) -> bytes:
    """A grey PNG whose header says this size, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(b"zTXt", text) for text in more), chunk(b"IDAT", zlib.compress(pixels))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


BOMBS = {
    "4 billion pixels": png(65_535, 65_535, b"\x00"),
    "2 billion wide": png(2**31 - 1, 1, b"\x00"),
    "no pixels": png(0, 0),
    "a strip": png(1, 60_000, b"\x00\x80" * 60_000),
    "a long text": png(8, 8, b"\x00" * 72, b"k\x00\x00" + zlib.compress(bytes(10**8))),
    "a bitmap of 4 GB": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 30_000, 30_000, 1, 32, 0, 0, 0, 0, 0, 0),
}


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((16, 16)), dtype=np.float32))[None] / 255


def both_ways(content: bytes | str) -> None:
    """As a classifier's picture and as one to draw."""
    for mode, smallest in (("L", 1), ("RGB", 1), ("RGB", SMALLEST)):
        refused(lambda mode=mode, smallest=smallest: open_image(content, "picture", mode, smallest=smallest))


def test_any_damaged_picture_is_read_or_refused() -> None:
    for content in (*whole(), *BOMBS.values(), b"", b"\x00" * 100):
        both_ways(content)
    try_all(st.sampled_from(whole()).flatmap(damaged), both_ways, DAMAGED)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_picture_that_would_fill_the_memory_is_refused(bomb) -> None:
    assert refused(lambda: open_image(BOMBS[bomb], bomb, "RGB"))


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    content = file(Image.fromarray(np.array([[1_000, 20_000, 65_535]] * 3, np.uint16)), "PNG")
    assert np.array(open_image(content, "deep", "L"))[0].tolist() == [3, 78, 255]


def classes(folder: Path) -> Path:
    for label, shade in (("dark", 20), ("light", 200)):
        (folder / label).mkdir(parents=True)
        for index in range(6):
            Image.new("L", (16, 16), shade + index).save(folder / label / f"{index}.png")
    return folder


def read_classes(path: Path, **fields) -> None:
    cfg = config(path, fields.pop("source", "imagefolder"), **fields)
    prepare(open_source(cfg), cfg, 0, "L", tensor)


def read_pictures(path: Path, **fields) -> None:
    cfg = config(path, fields.pop("source", "imagefolder"), **{"prompt": "a picture", **fields})
    prepare_pictures(open_captioned(cfg), cfg, 0, 16, lambda texts: torch.zeros(len(texts), 1), lambda pixels: pixels)


def test_links_that_lead_back_are_followed_once(tmp_path) -> None:
    """Two of them would be 2 to the power of 40 folders; one would put a picture on both sides of a split."""
    folder = classes(tmp_path / "data")
    (folder / "dark" / "up").symlink_to(folder / "dark")
    (folder / "dark" / "again").symlink_to(folder / "dark")
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "elsewhere" / "x.png")
    (folder / "dark" / "linked").symlink_to(tmp_path / "elsewhere")
    for read in (read_classes, read_pictures):
        assert refused(lambda read=read: read(folder))  # one of them leads out of the folder
        assert not refused(lambda read=read: read(folder, links=True))
    assert len(data_files(folder / "dark", (".png",))) == 7
    (folder / "dark" / "linked").unlink()
    for read in (read_classes, read_pictures):
        assert not refused(lambda read=read: read(folder))


@pytest.mark.parametrize("kind", ["pipe", "device", "dangling", "loop", "folder"])
def test_what_is_no_file_is_refused_and_does_not_hang(kind, tmp_path) -> None:
    folder = classes(tmp_path / "data")
    path = folder / "dark" / "6.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "nowhere.png", "loop": path}[kind])
    assert refused(lambda: read_classes(folder)) == refused(lambda: read_pictures(folder)) == (kind != "folder")


def test_names_of_pictures_do_not_matter(tmp_path) -> None:
    folder = classes(tmp_path / "data")
    for name in (
        "UPPER.PNG",
        "jpeg that is a png.jpg",
        "é\u202e.png",
        "a\nb.png",
        "-rf.png",
        ".png",
        "x" * 250 + ".png",
    ):
        Image.new("L", (16, 16)).save(folder / "dark" / name, "PNG")
    os.rename(folder / "light" / "0.png", os.fsencode(folder / "light") + b"/\xff.png")  # a name that is not UTF-8
    assert not refused(lambda: read_classes(folder))
    (folder / "dark" / "a\nb.png").write_bytes(b"no picture")
    assert refused(lambda: read_classes(folder))


ODD = [None, "/dev/zero", "../../etc/passwd", b"", b"no picture"]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_any_damaged_parquet_is_read_or_refused(tmp_path, cache) -> None:
    import datasets

    good = [file(Image.new("L", (16, 16), shade), "PNG") for shade in range(0, 240, 20)]
    rows = {"image": good, "label": ["dark", "light"] * 6, "text": ["a caption"] * 12}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    path = tmp_path / "train.parquet"
    table.to_parquet(str(path))
    content, number = path.read_bytes(), iter(range(10**9))

    def check(changed: bytes) -> None:
        path = tmp_path / f"{next(number)}.parquet"  # another name: the library keeps what it has read
        path.write_bytes(changed)
        refused(lambda: read_classes(path, source="hf"))
        refused(lambda: read_pictures(path, source="hf"))

    try_all(damaged(content), check, PARQUET)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_column_of_pictures_with_an_odd_one_is_refused(odd, tmp_path, cache) -> None:
    import datasets
    import pyarrow.parquet

    good = [file(Image.new("L", (16, 16), shade), "PNG") for shade in range(0, 240, 20)]
    cells = [{"bytes": content, "path": None} for content in good]
    cells[3] = odd if odd is None else {"bytes": odd if odd.__class__ is bytes else None, "path": None}
    if isinstance(odd, str):
        cells[3]["path"] = odd
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("string"), "text": datasets.Value("string")}
    )
    rows = {"image": cells, "label": ["dark", "light"] * 6, "text": ["a caption"] * 12}
    # Not to_parquet: it asks for the size of the files that are named, which need not be there.
    table = datasets.Dataset.from_dict(rows, features=features).data.table
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert refused(lambda: read_classes(tmp_path / "train.parquet", source="hf"))
    assert refused(lambda: read_pictures(tmp_path / "train.parquet", source="hf"))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("label", [None, "a"]),
        ("label", [[1], [2]]),
        ("label", [{"a": 1}, {"a": 2}]),
        ("label", [float("nan"), 1.0]),
        ("text", [None, "a"]),
        ("text", [1, 2]),
        ("text", ["", " "]),
    ],
)
def test_columns_of_what_is_no_class_and_no_caption(column, values, tmp_path, cache) -> None:
    import datasets

    good = [file(Image.new("L", (16, 16), shade), "PNG") for shade in range(0, 240, 20)]
    rows = {"image": good, "label": ["dark", "light"] * 6, "text": ["a caption"] * 12, column: values * 6}
    path = tmp_path / "train.parquet"
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(path))
    read = {"label": read_classes, "text": read_pictures}[column]
    assert refused(
        lambda: read(path, source="hf", columns=ColumnsConfig(), **({"prompt": None} if column == "text" else {}))
    )


def test_a_dataset_folder_runs_no_script(tmp_path, cache) -> None:
    (tmp_path / "data").mkdir()
    mark = tmp_path / "executed"
    (tmp_path / "data" / "data.py").write_text(f"open({str(mark)!r}, 'w')")
    (tmp_path / "data" / "README.md").write_text(
        "---\nconfigs: !!python/object/apply:os.system ['touch " + str(mark) + "']\n---"
    )
    assert refused(lambda: read_classes(tmp_path / "data", source="hf"))
    assert not mark.exists()
