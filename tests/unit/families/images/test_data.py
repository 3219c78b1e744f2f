"""Cutting and decoding: splits are apart and stay put, and bad data ends in a sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from foura.errors import UserError
from foura.families.images.data import prepare
from foura.families.images.sources import Labelled, Source, open_source
from foura.schema import ColumnsConfig, DatasetConfig


def dataset_config(**fields):
    return OmegaConf.structured(DatasetConfig(name="test", source=fields.pop("source", "digits"), **fields))


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32))[None] / 255


def cut(source: Source, seed: int = 0, **fields):
    return prepare(source, dataset_config(**fields), seed, "L", to_tensor)


def numbered(count: int, classes: int = 4) -> Source:
    """Images whose pixels are their own number, so that every item can be told."""
    images = [np.full((2, 2), index, dtype=np.uint8) for index in range(count)]
    labels = np.arange(count) % classes
    return Source(
        {"train": Labelled(images, labels, [str(index) for index in range(count)])}, [str(c) for c in range(classes)]
    )


def numbers(dataset) -> set[int]:
    return {round(float(dataset[index][0][0, 0, 0]) * 255) for index in range(len(dataset))}


def test_train_validation_and_test_are_apart_and_complete() -> None:
    data = cut(numbered(200))
    parts = [numbers(data.train), numbers(data.validation), numbers(data.test)]
    assert [len(part) for part in parts] == [120, 40, 40]
    assert set.union(*parts) == set(range(200))
    assert numbers(data.train_eval) <= parts[0]


def test_validation_and_test_stay_put_while_the_limit_draws_by_seed() -> None:
    one, two, again = (cut(numbered(200), seed=seed, limit=20) for seed in (0, 1, 0))
    assert numbers(one.test) == numbers(two.test)
    assert numbers(one.validation) == numbers(two.validation)
    assert numbers(one.train) != numbers(two.train)
    assert numbers(one.train) == numbers(again.train)
    assert one.fingerprint == again.fingerprint != two.fingerprint
    assert len(one.train) == 20
    assert sorted(torch.bincount(one.train.tensors[1]).tolist()) == [5, 5, 5, 5]  # drawn by class


def test_splits_that_the_data_brings_are_kept() -> None:
    source = numbered(100)
    source.splits["test"] = numbered(12).splits["train"]
    data = cut(source)
    assert data.sizes == {"train": 80, "validation": 20, "test": 12}


def test_the_fixed_part_of_images_sorted_by_class_is_of_all_classes() -> None:
    """As in folders with train, validation and test in them: 100 of 200 images, whatever the run's seed."""
    items = numbered(200).splits["train"]
    sorted_ = Labelled(items.images, np.arange(200) // 50, items.names)
    source = Source({"train": sorted_, "validation": sorted_, "test": sorted_}, list("abcd"))
    one, two = (cut(source, seed=seed, train_eval_limit=100, duplicates="keep") for seed in (0, 1))
    counts = torch.bincount(torch.tensor([label for _, label in one.train_eval]), minlength=4).tolist()
    assert sum(counts) == 100 and min(counts) >= 18
    assert numbers(one.train_eval) == numbers(two.train_eval) < numbers(one.train)


def test_the_held_out_images_that_count_are_drawn_by_class_and_split_seed() -> None:
    one, two = (cut(numbered(200), seed=seed, eval_limit=8) for seed in (0, 1))
    assert one.sizes == {"train": 120, "validation": 8, "test": 8}
    assert torch.bincount(one.test.tensors[1]).tolist() == torch.bincount(one.validation.tensors[1]).tolist() == [2] * 4
    whole, other = cut(numbered(200)), cut(numbered(200), split_seed=1, eval_limit=8)
    for name in ("validation", "test"):
        kept = numbers(getattr(one, name))
        assert kept == numbers(getattr(two, name)) < numbers(getattr(whole, name))
        assert kept != numbers(getattr(other, name))
    with pytest.raises(UserError, match=r"cannot draw dataset\.eval_limit items from 40 items by class"):
        cut(numbered(200), eval_limit=3)


def test_the_bundled_digits_are_real_and_cut_as_documented() -> None:
    data = cut(open_source(dataset_config()), limit=200, val_fraction=0.3, test_fraction=0.4)
    assert data.sizes == {"train": 200, "validation": 539, "test": 719}
    assert data.train[0][0].shape == (1, 16, 16)


def test_fractions_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="must leave items to train on"):
        cut(numbered(100), val_fraction=0.5, test_fraction=0.5)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(UserError, match="the train split has 1 class among"):
        cut(numbered(60, classes=1))


def test_a_class_of_one_item_cannot_be_cut() -> None:
    source = numbered(40)
    source.splits["train"].labels[:] = 0
    source.splits["train"].labels[0] = 1
    with pytest.raises(UserError, match="cannot cut a test split from 40 items by class"):
        cut(source)


def test_classes_can_be_chosen_and_wrong_ones_are_listed() -> None:
    source = open_source(dataset_config(classes=["7", "1"]))
    assert source.classes == ["7", "1"]
    assert set(source.splits["train"].labels.tolist()) == {0, 1}
    with pytest.raises(UserError, match="eleven is not a class of the data; it has: 0, 1, 2"):
        open_source(dataset_config(classes=["eleven", "1"]))


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "val"):
        for label, shade in (("dark", 20), ("light", 200)):
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (5, 4), (shade, shade, shade + index)).save(place / f"{index}.png")
    return tmp_path / "images"


def test_a_folder_of_images(folder) -> None:
    data = cut(open_source(dataset_config(source="imagefolder", path=str(folder))))
    assert data.classes == ["dark", "light"]
    assert data.sizes == {"train": 9, "validation": 12, "test": 3} and data.commonest == 0.5
    flat = cut(open_source(dataset_config(source="imagefolder", path=str(folder / "train"))))
    assert sum(flat.sizes.values()) == 12


def test_folders_that_cannot_work(folder, tmp_path) -> None:
    def open_folder(path) -> Source:
        return open_source(dataset_config(source="imagefolder", path=str(path)))

    with pytest.raises(UserError, match="there is nothing at that place"):
        open_folder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"Expected FOLDER/<class>/<image files>"):
        open_folder(folder / "train" / "dark")
    (folder / "val" / "grey").mkdir()
    with pytest.raises(UserError, match="classes that the training folder lacks: grey"):
        open_folder(folder)


def test_an_unreadable_image_is_named(folder) -> None:
    (folder / "train" / "dark" / "0.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"dark/0\.png cannot be read as an image"):
        cut(open_source(dataset_config(source="imagefolder", path=str(folder))))


def test_a_truncated_image_is_named(folder) -> None:
    path = folder / "train" / "light" / "3.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"light/3\.png cannot be read as an image"):
        cut(open_source(dataset_config(source="imagefolder", path=str(folder))))


@pytest.fixture
def parquet(folder, tmp_path, monkeypatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = sorted(folder.rglob("*.png"))
    rows = {"picture": [{"bytes": path.read_bytes(), "path": path.name} for path in files]}
    rows["kind"] = [path.parent.name for path in files]
    table = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    place = tmp_path / "hub"
    place.mkdir()
    table.to_parquet(str(place / "train.parquet"))
    return place


def test_a_local_parquet_dataset(parquet) -> None:
    columns = ColumnsConfig(image="picture", label="kind")
    for path in (parquet, parquet / "train.parquet"):
        source = open_source(dataset_config(source="hf", path=str(path), columns=columns))
        assert source.classes == ["dark", "light"]
        assert sum(cut(source).sizes.values()) == 24


def test_hub_data_that_cannot_work(parquet, tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"dataset.columns.image=image: there is no such column; the data has: picture, kind"
    ):
        open_source(dataset_config(source="hf", path=str(parquet)))
    with pytest.raises(UserError, match=r"dataset.columns.image=kind holds .* not images"):
        open_source(dataset_config(source="hf", path=str(parquet), columns=ColumnsConfig(image="kind", label="kind")))
    with pytest.raises(UserError, match="there is nothing at that place"):
        open_source(dataset_config(source="hf", path=str(tmp_path / "absent")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="could not be loaded"):
        open_source(dataset_config(source="hf", path=str(tmp_path / "empty")))


def test_the_items_with_a_wrong_label_are_those_whose_label_changed() -> None:
    from foura.families.images.sources import open_source
    from foura.schema import DatasetConfig

    cfg = OmegaConf.structured(DatasetConfig(name="digits", source="digits", limit=50))
    clean = prepare(open_source(cfg), cfg, 0, "L", lambda image: torch.tensor(np.asarray(image)))
    cfg.label_noise = 0.2
    noisy = prepare(open_source(cfg), cfg, 0, "L", lambda image: torch.tensor(np.asarray(image)))
    assert clean.noisy is None and len(noisy.noisy) == 10
    wrong = {int(index) for index in noisy.noisy.indices}
    assert wrong == {i for i in range(50) if clean.train[i][1] != noisy.train[i][1]}
