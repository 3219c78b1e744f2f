"""Data folders of other people: what is in the folder is read, and nothing else; names are paths, archives are bounded."""

import bz2
import gzip
import http.server
import io
import json
import lzma
import os
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from foura.data.hub import encoded, image_records, read_hub, rows
from foura.data.images import open_image
from foura.data.listing import data_files
from foura.data.splits import existing
from foura.data.tables import read_records
from foura.data.unpacked import check_unpacked
from foura.errors import UserError
from foura.files import read_text
from foura.schema import DatasetConfig
from tests.helpers.hostile import in_time


def config(path: Path | str, **fields):
    return OmegaConf.structured(DatasetConfig(name="test", source="hf", path=str(path), **fields))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    (made / "train.jsonl").write_text("".join(json.dumps({"text": f"own {n}"}) + "\n" for n in range(3)))
    (tmp_path / "secret.jsonl").write_text(json.dumps({"text": "mine"}) + "\n")
    return made


def texts(path: Path | str, **fields) -> list[str]:
    return [row["text"] for row in rows(read_hub(config(path, **fields))["train"])]


@pytest.fixture
def asked() -> list[str]:
    """The requests to a server on this machine; its address is the first entry."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815  (the name that the server looks for)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen.append(f"http://127.0.0.1:{server.server_port}")
    yield seen
    server.shutdown()


def card(*paths: str, key: str = "data_files") -> str:
    return (
        "---\nconfigs:\n- config_name: default\n"
        + f"  {key}: {json.dumps(paths[0] if len(paths) == 1 else paths)}\n---\n"
    )


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("how", ["absolute", "above", "url", "file", "home", "splits", "dir", "above dir", "chain"])
def test_a_card_names_nothing_outside_of_its_folder(how, name, folder, tmp_path, asked) -> None:
    secret = tmp_path / "secret.jsonl"
    text = {
        "absolute": card(str(secret)),
        "above": card("../secret.jsonl"),
        "url": card(f"{asked[0]}/secret.jsonl"),
        "file": card(f"file://{secret}"),
        "home": card("~/secret.jsonl"),
        "splits": "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: ['*.jsonl', '../*.jsonl']\n---\n",
        "dir": card(str(tmp_path), key="data_dir"),
        "above dir": card("..", key="data_dir"),
        "chain": card(f"zip://x.jsonl::{asked[0]}/x.zip"),
    }[how]
    (folder / name).write_text(text if name == "README.md" else text.replace("---\n", ""))
    with pytest.raises(UserError, match="names data outside of it"):
        read_hub(config(folder))
    assert len(asked) == 1  # nobody was asked for anything


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("text", [f"{ALIASES}tags: *i\n", f"{ALIASES}configs:\n- data_files: *i\n", "a: &a [1, *a]\n"])
def test_a_card_does_not_grow_when_it_is_read(text, name, folder) -> None:
    """Libraries write its aliases out: 43 million values of 500 bytes took six gigabytes and two minutes."""
    (folder / name).write_text(f"---\n{text}---\n" if name == "README.md" else text)
    with in_time(60), pytest.raises(UserError, match="refers to its own parts again and again"):
        read_hub(config(folder))


def test_a_card_that_refers_to_a_part_of_it_is_obeyed(folder) -> None:
    (folder / "README.md").write_text(
        "---\na: &a train.jsonl\nconfigs:\n- config_name: default\n  data_files: *a\n---\n"
    )
    assert len(texts(folder)) == 3


def test_a_card_that_stays_inside_is_obeyed(folder) -> None:
    (folder / "other.jsonl").write_text(json.dumps({"text": "other"}) + "\n")
    (folder / "README.md").write_text(card("other.jsonl"))
    assert texts(folder) == ["other"]


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_out_of_the_folder_needs_a_key(linked, folder, tmp_path) -> None:
    if linked == "file":
        (folder / "train-2.jsonl").symlink_to(tmp_path / "secret.jsonl")
    else:
        (tmp_path / "elsewhere" / "train").mkdir(parents=True)
        shutil.move(tmp_path / "secret.jsonl", tmp_path / "elsewhere" / "train" / "x.jsonl")
        shutil.move(folder / "train.jsonl", tmp_path / "elsewhere" / "train" / "y.jsonl")
        (folder / "train").symlink_to(tmp_path / "elsewhere" / "train")
    with pytest.raises(UserError, match=r"dataset.links=true"):
        read_hub(config(folder))
    with pytest.raises(UserError, match=r"dataset.links=true"):
        existing(config(folder))


def test_linked_pictures_need_the_key_and_hidden_links_do_not_matter(tmp_path) -> None:
    for name in ("data/a", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / name / "x.png")
    (tmp_path / "data" / ".venv").symlink_to("/usr")
    assert existing(config(tmp_path / "data")) == tmp_path / "data"
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"dataset.links=true"):
        existing(config(tmp_path / "data"))
    found = data_files(existing(config(tmp_path / "data", links=True)), (".png",))
    assert [path.parent.name for path in found] == ["a", "b"]


def test_a_hub_snapshot_of_links_is_read_without_a_key(folder, tmp_path) -> None:
    repository = tmp_path / "datasets--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "abc").mkdir(parents=True)
    shutil.move(folder / "train.jsonl", repository / "blobs" / "123")
    (repository / "snapshots" / "abc" / "train.jsonl").symlink_to("../../blobs/123")
    assert texts(repository / "snapshots" / "abc") == ["own 0", "own 1", "own 2"]


def test_the_name_of_a_table_is_no_pattern(tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    for name in ("a1", "a[1]"):
        pyarrow.parquet.write_table(pyarrow.table({"text": [name]}), tmp_path / f"{name}.parquet")
    assert texts(tmp_path / "a[1].parquet") == ["a[1]"]


@pytest.mark.parametrize("name", ["a[1].jsonl", "a*.jsonl", "a?.jsonl", "{a,b}.jsonl", "a 1.jsonl"])
def test_the_name_of_a_file_is_no_pattern(name, tmp_path) -> None:
    (tmp_path / "a1.jsonl").write_text(json.dumps({"text": "another"}) + "\n")
    (tmp_path / name).write_text(json.dumps({"text": "this"}) + "\n")
    assert texts(tmp_path / name) == ["this"]


def test_the_name_of_a_folder_is_no_pattern(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "a1")
    shutil.copytree(folder, tmp_path / "a[1]")
    with pytest.raises(UserError, match="rename it"):
        read_hub(config(tmp_path / "a[1]"))


@pytest.mark.parametrize("name", ["csv", "json", "parquet", "text", "imagefolder", "generator"])
def test_the_name_of_a_reader_is_a_folder(name, folder, tmp_path, monkeypatch) -> None:
    """The library takes it for its reader, which then reads the whole working directory."""
    shutil.copytree(folder, tmp_path / "work" / name)
    (tmp_path / "work" / "mine.jsonl").write_text(json.dumps({"text": "mine"}) + "\n")
    (tmp_path / "work" / "mine.csv").write_text("text\nmine\n")
    monkeypatch.chdir(tmp_path / "work")
    assert texts(name) == ["own 0", "own 1", "own 2"]
    shutil.rmtree(name)
    with pytest.raises(UserError, match="there is nothing at that place"):
        read_hub(config(name))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_is_bounded_by_what_it_unpacks_to(pack, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("foura.data.unpacked.UNPACKED", 2**20)
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(pack(b'{"text": "' + b"a" * 2**23 + b'"}\n'))
    with pytest.raises(UserError, match="unpacks to more than"):
        read_hub(config(path))


def test_a_zip_of_nothing_is_refused_and_so_is_what_cannot_be_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("foura.data.unpacked.UNPACKED", 2**20)
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "train.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train.jsonl", b'{"text": "' + b"a" * 2**23 + b'"}\n')
    with pytest.raises(UserError, match="unpacks to more than"):
        read_hub(config(tmp_path / "data"))
    (tmp_path / "train.jsonl").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(UserError, match="unpack it"):
        read_hub(config(tmp_path / "train.jsonl"))


def repeated(path: Path, rows: int, length: int, nested: bool = False) -> None:
    """A table of one value, which parquet stores once."""
    import pyarrow
    import pyarrow.parquet

    index = pyarrow.array([0] * rows, pyarrow.int32())
    texts: pyarrow.Array = pyarrow.DictionaryArray.from_arrays(index, pyarrow.array(["a" * length]))
    if nested:
        texts = pyarrow.StructArray.from_arrays([pyarrow.ListArray.from_arrays(list(range(rows + 1)), texts)], ["x"])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", store_schema=False)


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_is_bounded_by_what_it_unpacks_to(nested, tmp_path) -> None:
    path = tmp_path / "data" / "train.parquet"
    path.parent.mkdir()
    repeated(path, 2000, 2**20, nested)
    assert path.stat().st_size < 10_000
    for read in (lambda: read_hub(config(path)), lambda: read_hub(config(path.parent)), lambda: read_records(path)):
        with pytest.raises(UserError, match="unpacks to more than"):
            read()
    repeated(path, 2000, 1000, nested)
    assert len(rows(read_hub(config(path.parent))["train"])) == len(read_records(path)[0]) == 2000


def test_a_table_of_large_values_that_do_not_repeat_is_read(tmp_path, monkeypatch) -> None:
    """Its own bound by the longest value would refuse it, so it is measured: a few short, and one of a tenth of the file."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr("foura.data.unpacked.UNPACKED", 0)
    texts = [str(number) for number in range(20_000)] + ["".join(map(str, range(20_000)))]
    table = pyarrow.table({"text": texts, "same": ["x"] * len(texts), "number": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", dictionary_pagesize_limit=2**24)
    assert len(rows(read_hub(config(tmp_path / "train.parquet"))["train"])) == len(texts)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_archive_of_holes_is_refused(pack, tmp_path) -> None:
    """GNU's sparse members: 512 bytes of header, and as many zeros as it says once they are read."""
    import tarfile

    member = tarfile.TarInfo("a.txt")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**32  # the real size, in octal
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / ("train.tar" if pack is bytes else "train.tar.gz")
    path.write_bytes(pack(bytes(header) + bytes(1024)))
    with tarfile.open(path) as archive:
        assert [one.size for one in archive] == [2**32]
    for read in (lambda: read_hub(config(path.parent)), lambda: check_unpacked(path)):
        with pytest.raises(UserError, match="unpacks to more than"):
            read()


def test_a_packed_text_is_bounded_and_an_ordinary_one_is_read(tmp_path, monkeypatch) -> None:
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(b"a text of some length, written once\n" * 50))
    assert read_text(path).count("written") == 50
    monkeypatch.setattr("foura.files.UNPACKED", 2**20)
    path.write_bytes(gzip.compress(bytes(2**23)))
    with pytest.raises(UserError, match="holds more than"):
        read_text(path)


def picture(shade: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("L", (16, 16), shade).save(out, "PNG")
    return out.getvalue()


def table_of(path: Path, cells: list[dict]) -> None:
    import datasets
    import pyarrow.parquet

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": cells, "text": ["a"] * len(cells)}
    pyarrow.parquet.write_table(datasets.Dataset.from_dict(rows, features=features).data.table, path)


def images(path: Path, **fields) -> list:
    cfg = config(path, **fields)
    return encoded(image_records(read_hub(cfg)["train"], "image"), cfg)


def test_a_table_names_no_picture_of_another_folder(tmp_path, asked, monkeypatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "mine.png").write_bytes(picture(200))
    (tmp_path / "data" / "own.png").write_bytes(picture(10))
    for path in (str(tmp_path / "mine.png"), "../mine.png", f"{asked[0]}/x.png", "file:///etc/passwd"):
        table_of(tmp_path / "data" / "train.parquet", [{"bytes": None, "path": path}] * 2)
        with pytest.raises(UserError):
            images(tmp_path / "data" / "train.parquet")
    table_of(tmp_path / "data" / "train.parquet", [{"bytes": None, "path": str(tmp_path / "data" / "own.png")}] * 2)
    assert images(tmp_path / "data" / "train.parquet") == [str(tmp_path / "data" / "own.png")] * 2
    assert len(asked) == 1


def test_cells_that_are_not_asked_for_are_not_opened(tmp_path, asked) -> None:
    """A text is read from a table that has pictures on other machines too: the library would fetch them."""
    table_of(tmp_path / "train.parquet", [{"bytes": None, "path": f"{asked[0]}/{n}.png"} for n in range(3)])
    found = rows(read_hub(config(tmp_path / "train.parquet"))["train"])
    assert [row["text"] for row in found] == ["a"] * 3 and len(asked) == 1


def test_a_picture_runs_no_program(tmp_path, monkeypatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    mark = tmp_path / "executed"
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {mark}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(eps)
    with pytest.raises(UserError):
        open_image(str(tmp_path / "x.png"), "x.png", "RGB")
    with pytest.raises(UserError):
        open_image(eps, "x.png", "RGB")
    assert not mark.exists()


def test_a_picture_is_bounded_by_its_pixels_and_a_key_lifts_it(monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert np.array(open_image(picture(7), "small", "L", any_size=True)).max() == 7
    with pytest.raises(UserError, match=r"dataset.any_size=true takes it"):
        open_image(picture(), "large", "L")
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("name", ["README.md", "dataset_infos.json", ".huggingface.yaml"])
def test_a_card_of_no_real_size_is_refused(name, folder) -> None:
    with open(folder / name, "wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(UserError, match="has 3 GB"):
        read_hub(config(folder))
