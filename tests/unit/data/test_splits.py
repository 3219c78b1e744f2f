"""Splits: found by their names, and cut so that validation and test data are the same for every run."""

import numpy as np
import pytest

from foura.data.splits import (
    check_column,
    cut_at_random,
    cut_by_class,
    draw_at_random,
    draw_by_class,
    missing_shares,
    split_files,
    split_folders,
    split_tables,
)
from foura.errors import UserError


def test_folders_are_found_by_the_first_of_their_names(tmp_path) -> None:
    assert split_folders(tmp_path) == {"train": tmp_path}
    for name in ("dev", "val", "test"):
        (tmp_path / name).mkdir()
    assert split_folders(tmp_path) == {"train": tmp_path}  # without a training folder, all of it is training data
    (tmp_path / "train").mkdir()
    assert split_folders(tmp_path) == {
        "train": tmp_path / "train",
        "validation": tmp_path / "val",
        "test": tmp_path / "test",
    }


def test_files_are_found_by_the_first_of_their_names(tmp_path) -> None:
    for name in ("valid.jsonl", "dev.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"has no train\.jsonl; it has: dev\.jsonl, valid\.jsonl\."):
        split_files(tmp_path, ".jsonl")
    (tmp_path / "train.jsonl").touch()
    found = split_files(tmp_path, ".jsonl")
    assert {split: path.name for split, path in found.items()} == {"train": "train.jsonl", "validation": "valid.jsonl"}
    assert split_files(tmp_path / "dev.jsonl", ".jsonl") == {"train": tmp_path / "dev.jsonl"}


def test_tables_are_found_by_the_first_of_their_names() -> None:
    assert split_tables({"dev": 1, "train": 2, "valid": 3}, "x") == {"train": ("train", 2), "validation": ("valid", 3)}
    with pytest.raises(UserError, match=r"dataset\.path=x has no split named train; it has: test, other"):
        split_tables({"test": 1, "other": 2}, "x")


def test_a_missing_column_is_said_with_those_that_are_there() -> None:
    check_column("dataset.columns.text", "a", ["a", "b"])
    with pytest.raises(UserError, match=r"dataset\.columns\.text=c: there is no such column; the data has: a, b"):
        check_column("dataset.columns.text", "c", ["a", "b"])


def test_only_missing_splits_are_cut_and_something_is_left_to_train_on() -> None:
    shares = {"test": 0.6, "validation": 0.4}
    assert list(missing_shares(["train", "test"], shares)) == ["validation"]
    with pytest.raises(UserError, match="must leave items to train on"):
        missing_shares(["train"], shares)


def test_a_random_cut_is_complete_and_depends_on_its_seed_alone() -> None:
    parts = cut_at_random(20, {"test": 4, "validation": 3}, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 13, "test": 4, "validation": 3}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(20))
    again, other = cut_at_random(20, {"test": 4, "validation": 3}, 0), cut_at_random(20, {"test": 4}, 1)
    assert (again["test"] == parts["test"]).all() and (other["test"] != parts["test"]).any()
    with pytest.raises(UserError, match="3 items are too few"):
        cut_at_random(3, {"test": 2, "validation": 1}, 0)


def test_a_cut_by_class_keeps_the_shares_of_the_classes() -> None:
    labels = np.array([0] * 60 + [1] * 20 + [2] * 20)
    rest, part = cut_by_class(labels, 0.25, 0, "test")
    assert np.bincount(labels[part]).tolist() == [15, 5, 5]
    assert sorted([*rest, *part]) == list(range(100))
    with pytest.raises(UserError, match="cannot cut a test split from 3 items by class"):
        cut_by_class(np.array([0, 0, 1]), 0.5, 0, "test")


def test_training_items_are_drawn_with_the_seed() -> None:
    labels = np.array([0] * 60 + [1] * 40)
    drawn = draw_by_class(labels, 10, 0)
    assert np.bincount(labels[drawn]).tolist() == [6, 4]
    assert set(drawn) != set(draw_by_class(labels, 10, 1))
    some = draw_at_random(100, 7, 0)
    assert len(set(some)) == 7 and set(some) != set(draw_at_random(100, 7, 1))
    assert sorted(draw_at_random(5, None, 0)) == list(range(5))
