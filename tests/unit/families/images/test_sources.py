"""Folders and tables of images as people have them: what belongs to them, what is a split, and what is a copy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from foura.errors import UserError
from foura.families.images import data as images_data
from foura.families.images.data import prepare
from foura.families.images.sources import open_source
from foura.schema import ColumnsConfig, DatasetConfig


def opened(path, source="imagefolder", **fields):
    cfg = OmegaConf.structured(DatasetConfig(name="test", source=source, path=str(path), **fields))
    return open_source(cfg), cfg


def prepared(path, mode="L", **fields):
    found, cfg = opened(path, **fields)
    return prepare(found, cfg, 0, mode, lambda image: torch.from_numpy(np.array(image, dtype=np.float32)))


def classes(folder: Path, first: int = 0, count: int = 8) -> Path:
    """Two classes of images that all differ."""
    for number, label in enumerate(("cat", "dog")):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            shade = first + count * number + index
            Image.new("L", (9, 9), shade).save(folder / label / f"{index}.png")
    return folder


@pytest.mark.parametrize("left", [".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"])
@pytest.mark.parametrize("source", ["imagefolder", "hf"])
def test_what_systems_leave_is_neither_a_class_nor_an_image(left, source, tmp_path, cache) -> None:
    folder = classes(tmp_path / "data")
    shutil.copytree(folder / "cat", folder / left)
    shutil.copytree(folder / "dog", folder / "cat" / left)
    (folder / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (folder / "dog" / "Thumbs.db").touch()
    (tmp_path / "data" / ".empty").mkdir()
    found, _ = opened(folder, source)
    assert found.classes == ["cat", "dog"] and len(found.splits["train"]) == 16


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("source", ["imagefolder", "hf"])
@pytest.mark.parametrize(
    ("train", "test"), [("training", "testing"), ("Train", "Test"), ("TRAINING", "eval"), ("train", "dev")]
)
def test_splits_are_known_by_their_names(train, test, source, tmp_path, cache) -> None:
    classes(tmp_path / "data" / train)
    classes(tmp_path / "data" / test, 100, 3)
    found, _ = opened(tmp_path / "data", source)
    assert found.classes == ["cat", "dog"]
    assert {split: len(items) for split, items in found.splits.items()} == {
        "train": 16,
        "validation" if test == "dev" else "test": 6,
    }


@pytest.mark.parametrize("source", ["imagefolder", "hf"])
def test_splits_beside_classes_are_refused(source, tmp_path, cache) -> None:
    for name in ("Train", "test"):
        classes(tmp_path / "data" / name)
    classes(tmp_path / "data", 50)
    with pytest.raises(UserError, match=r"dataset\.splits="):
        opened(tmp_path / "data", source)
    if source == "imagefolder":
        found, _ = opened(tmp_path / "data", splits={"train": "Train"})
        assert {split: len(items) for split, items in found.splits.items()} == {"train": 16}


def test_a_class_of_trains_can_be_kept(tmp_path) -> None:
    classes(tmp_path / "data")
    (tmp_path / "data" / "dog").rename(tmp_path / "data" / "train")
    assert opened(tmp_path / "data", splits={"train": "."})[0].classes == ["cat", "train"]


def test_splits_inside_classes_are_refused(tmp_path) -> None:
    for label in ("cat", "dog"):
        for split in ("train", "test"):
            (tmp_path / label / split).mkdir(parents=True)
            Image.new("L", (9, 9)).save(tmp_path / label / split / "0.png")
    with pytest.raises(UserError, match="cat is a class with splits inside it"):
        opened(tmp_path)


def shades(dataset) -> set[int]:
    return {int(dataset[index][0][0, 0]) for index in range(len(dataset))}


def test_copies_in_two_splits_are_said_and_can_be_dropped(tmp_path, capsys) -> None:
    classes(tmp_path / "train")
    classes(tmp_path / "test", 100, 3)
    for index in range(2):
        shutil.copy(tmp_path / "train" / "cat" / f"{index}.png", tmp_path / "test" / "cat" / f"copy {index}.png")
    assert prepared(tmp_path).sizes["test"] == 8
    assert "2 of 8 test items are also in the training data" in capsys.readouterr().out
    data = prepared(tmp_path, duplicates="drop")
    assert data.sizes["test"] == 8 and sum(data.sizes.values()) == 16 + 8 - 2
    assert not (shades(data.train) | shades(data.validation)) & shades(data.test)
    with pytest.raises(UserError, match="2 of 8 test items are also"):
        prepared(tmp_path, duplicates="refuse")


def test_copies_within_data_that_is_cut_are_said(tmp_path, capsys) -> None:
    """Each image twice: of what is cut off, most has its copy in the training data."""
    classes(tmp_path / "data")
    for label in ("cat", "dog"):
        for path in sorted((tmp_path / "data" / label).iterdir()):
            shutil.copy(path, path.with_name(f"copy of {path.name}"))
    prepared(tmp_path / "data")
    assert "of 7 test items are also in the training data" in capsys.readouterr().out
    data = prepared(tmp_path / "data", duplicates="drop")
    assert not shades(data.train) & (shades(data.validation) | shades(data.test))
    assert not shades(data.validation) & shades(data.test)


def test_transparent_images_are_not_black(tmp_path) -> None:
    """A drawing on nothing, as icons are: its pixels are black, and only their transparency draws it."""
    for label, alpha in (("empty", 0), ("full", 255)):
        (tmp_path / label).mkdir()
        for index in range(6):
            Image.new("RGBA", (9, 9 + index), (0, 0, 0, alpha)).resize((9, 9)).save(tmp_path / label / f"{index}.png")
    for background, wanted in (("white", {0, 255}), ("#404040", {0, 64})):
        data = prepared(tmp_path, background=background)
        assert shades(data.train) == wanted


def test_an_unreadable_image_can_be_left_out(tmp_path, capsys) -> None:
    classes(tmp_path / "data")
    (tmp_path / "data" / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cat/3\.png cannot be read as an image"):
        prepared(tmp_path / "data")
    assert sum(prepared(tmp_path / "data", unreadable="drop").sizes.values()) == 15
    assert "1 of 16 items of the train split are unreadable" in capsys.readouterr().out


def test_an_unreadable_image_among_many_is_found_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(images_data, "IN_MEMORY_BYTES", 0)  # all are read when they are needed
    classes(tmp_path / "data")
    assert sum(prepared(tmp_path / "data").sizes.values()) == 16
    (tmp_path / "data" / "dog" / "7.png").write_bytes((tmp_path / "data" / "dog" / "7.png").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"dog/7\.png cannot be read as an image"):
        prepared(tmp_path / "data")


def table(folder: Path, split: str, first: int, labels: list[int], name: str = "") -> None:
    import datasets

    rows = {"image": [np.full((9, 9), first + index, np.uint8) for index in range(len(labels))], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (folder / name).mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / name / f"{split}.parquet")


def test_a_split_without_labels_is_left_out(tmp_path, cache, capsys) -> None:
    table(tmp_path / "data", "train", 0, [0, 1] * 10)
    table(tmp_path / "data", "test", 100, [-1] * 6)
    found, _ = opened(tmp_path / "data", "hf", columns=ColumnsConfig())
    assert set(found.splits) == {"train"}
    assert "the test split has no labels" in capsys.readouterr().out


def test_configurations_and_splits_can_be_chosen(tmp_path, cache) -> None:
    folder = tmp_path / "data"
    table(folder, "train_a", 0, [0, 1] * 5, "one")
    table(folder, "train_a", 50, [0, 1] * 6, "two")
    table(folder, "held_out", 100, [0, 1] * 2, "two")
    lines = ["configs:"]
    for name, splits in (("one", ["train_a"]), ("two", ["train_a", "held_out"])):
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - {{split: {split}, path: {name}/{split}.parquet}}" for split in splits]
    (folder / "README.md").write_text("\n".join(["---", *lines, "---"]))
    with pytest.raises(UserError, match=r"several configurations: choose one with dataset\.config=NAME, of one, two"):
        opened(folder, "hf")
    assert len(opened(folder, "hf", config="one")[0].splits["train"]) == 10
    found, _ = opened(folder, "hf", config="two", splits={"train": "train_a", "test": "held_out"})
    assert {split: len(items) for split, items in found.splits.items()} == {"train": 12, "test": 4}
    with pytest.raises(UserError, match=r"dataset\.config=three could not be loaded"):
        opened(folder, "hf", config="three")


def test_a_table_without_rows_is_refused(tmp_path, cache) -> None:
    (tmp_path / "train.csv").write_text("image,label\na.png,0\n")
    (tmp_path / "test.csv").write_text("image,label\n")
    with pytest.raises(UserError, match=r"dataset\.path=.*: the test split is empty"):
        opened(tmp_path, "hf")


@pytest.mark.parametrize(
    ("labels", "names"), [(["x", "y", "", "x"], None), (["x", "y", None, "x"], None), ([0, 1, -1, 0], ["x", "y"])]
)
def test_a_label_that_is_missing_is_no_class(labels, names, tmp_path, cache) -> None:
    import datasets

    for index in range(len(labels)):
        Image.new("L", (9, 9), index).save(tmp_path / f"{index}.png")
    kind = datasets.Value("string") if names is None else datasets.ClassLabel(names=names)
    columns = {"image": [str(tmp_path / f"{index}.png") for index in range(len(labels))], "label": labels}
    table = datasets.Dataset.from_dict(columns, datasets.Features({"image": datasets.Image(), "label": kind}))
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(
        UserError, match=r"1 of 4 items of the train split have no label \(the first is item 2 \(.*2\.png"
    ):
        opened(tmp_path / "data", "hf")
