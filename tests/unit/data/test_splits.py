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
    refuse_splits_within,
    some_in_order,
    split_files,
    split_folders,
    split_of,
    split_tables,
)
from foura.errors import UserError


def made(root, *names: str):
    """`root` with folders, each with a file in it."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.txt").touch()
    return root


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[
            (name, "train")
            for name in ("train", "Training", "TRAIN", "train_2017", "my-train.set", "x train", "train2017")
        ],
        *[(name, "validation") for name in ("valid", "Validation", "VAL", "dev", "val2017", "validation_matched")],
        *[(name, "test") for name in ("Testing", "test", "eval", "EVALUATION", "test-00000-of-00002")],
        *[(name, None) for name in ("latest", "training_and_test", "contest", "devil", "trainer", "cat", "")],
    ],
)
def test_names_of_splits_are_those_of_hugging_face(name, split) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "Valid", "Testing"), ("my_train", "dev", "EVAL")],
)
def test_folders_are_found_by_their_names(train, validation, test, tmp_path) -> None:
    made(tmp_path, f"{train}/cat", f"{test}/cat", f"{validation}/cat", ".ipynb_checkpoints")
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.txt").touch()
    assert split_folders(tmp_path, {}, (".txt",)) == {
        "train": tmp_path / train,
        "validation": tmp_path / validation,
        "test": tmp_path / test,
    }


def test_a_folder_without_splits_is_training_data(tmp_path) -> None:
    assert split_folders(made(tmp_path, "cat", "dog"), {}, (".txt",)) == {"train": tmp_path}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train", "test", "cat"), r"named like splits \(train, test\) and others with data \(cat\)"),
        (("cat", "test"), r"named like splits \(test\) and others with data \(cat\)"),
        (("airplane", "train"), r"named like splits \(train\) and others with data \(airplane\)"),
        (("testing", "valid"), "no training folder beside them"),
        (("train", "Train"), r"several train splits \(Train, train\)"),
        (("train", "val", "dev"), r"several validation splits \(dev, val\)"),
        (("train_a", "train_b", "test"), "several train splits"),
        (("trainset", "testset"), r"begin like splits \(trainset, testset\)"),
    ],
)
def test_folders_that_could_mean_several_things_are_refused(names, words, tmp_path) -> None:
    with pytest.raises(UserError, match=words + r".*dataset\.splits="):
        split_folders(made(tmp_path, *names), {}, (".txt",))


def test_folders_can_be_chosen(tmp_path) -> None:
    made(tmp_path, "a/b", "train", "test")
    found = split_folders(tmp_path, {"train": "a/b", "test": "test"}, (".txt",))
    assert found == {"train": tmp_path / "a" / "b", "test": tmp_path / "test"}
    assert split_folders(tmp_path, {"train": "."}, (".txt",)) == {"train": tmp_path}
    for wanted, words in (
        ({"train": "absent"}, "has no absent"),
        ({"train": ".."}, r"has no \.\."),
        ({"test": "a"}, "train is missing"),
        ({"train": "a", "dev": "test"}, "dev is not a split"),
    ):
        with pytest.raises(UserError, match=words):
            split_folders(tmp_path, wanted, (".txt",))


def test_files_beside_splits_are_counted(tmp_path, capsys) -> None:
    made(tmp_path, "train", "test")
    (tmp_path / "loose.txt").touch()
    split_folders(tmp_path, {}, (".txt",))
    assert "1 files beside the splits" in capsys.readouterr().out


def test_a_class_with_splits_inside_is_refused(tmp_path) -> None:
    refuse_splits_within(made(tmp_path / "cat", "indoor", "train"))
    with pytest.raises(UserError, match=r"cat is a class with splits inside it \(train, test\): .* as in train/cat/"):
        refuse_splits_within(made(tmp_path / "cat", "test").parent / "cat")


def names_of(found) -> dict[str, list[str]]:
    return {split: [path.name for path in paths] for split, paths in found.items()}


def test_files_are_found_by_their_names(tmp_path, capsys) -> None:
    ends = (".jsonl", ".csv", ".jsonl.gz")
    (tmp_path / "Valid.jsonl").touch()
    with pytest.raises(UserError, match=r"has no train\.jsonl; it has: Valid\.jsonl\."):
        split_files(tmp_path, {}, ends)
    for name in ("train-00001-of-2.jsonl.gz", "train-00000-of-2.jsonl.gz", "extra.csv", "._train.csv", "notes.md"):
        (tmp_path / name).touch()
    assert names_of(split_files(tmp_path, {}, ends)) == {
        "train": ["train-00000-of-2.jsonl.gz", "train-00001-of-2.jsonl.gz"],
        "validation": ["Valid.jsonl"],
    }
    assert "extra.csv" in capsys.readouterr().out
    assert names_of(split_files(tmp_path, {"train": "extra.csv"}, ends)) == {"train": ["extra.csv"]}
    assert names_of(split_files(tmp_path / "Valid.jsonl", {}, ends)) == {"train": ["Valid.jsonl"]}
    with pytest.raises(UserError, match=r"Valid\.jsonl is a file: leave dataset\.splits out"):
        split_files(tmp_path / "Valid.jsonl", {"train": "Valid.jsonl"}, ends)
    (tmp_path / "train.csv").touch()
    assert names_of(split_files(tmp_path, {}, ends))["train"] == ["train.csv"]  # the plain name, before longer ones
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError, match=r"several train splits \(train\.csv, train\.jsonl\)"):
        split_files(tmp_path, {}, ends)


def test_files_without_names_of_splits_are_training_data(tmp_path) -> None:
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).touch()
    assert names_of(split_files(tmp_path, {}, (".csv",))) == {"train": ["a.csv", "b.csv"]}
    for name in ("trainset.csv", "testset.csv"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="begin like splits"):
        split_files(tmp_path, {}, (".csv",))


def test_tables_are_found_by_their_names(capsys) -> None:
    found = split_tables({"dev": "1", "Training": "2", "extra": ""}, "x", {})
    assert found == {"train": ("Training", "2"), "validation": ("dev", "1")}
    assert "the splits extra are not used" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"dataset\.path=x has no split named train; it has: test, other"):
        split_tables({"test": 1, "other": 2}, "x", {})
    mnli = {"train": "1", "validation_matched": "2", "validation_mismatched": "3"}
    with pytest.raises(UserError, match=r"several validation splits \(validation_matched, validation_mismatched\)"):
        split_tables(mnli, "x", {})
    wanted = {"train": "train", "test": "validation_mismatched"}
    assert split_tables(mnli, "x", wanted) == {"train": ("train", "1"), "test": ("validation_mismatched", "3")}
    with pytest.raises(UserError, match=r"has no split dev; it has: train, validation_matched"):
        split_tables(mnli, "x", {"train": "dev"})
    with pytest.raises(UserError, match=r"dataset\.path=x: the test split is empty"):
        split_tables({"train": "1", "test": ""}, "x", {})


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
    from sklearn.model_selection import train_test_split

    # published runs drew this way: other draws would be other results
    assert list(drawn) == list(train_test_split(np.arange(100), stratify=labels, random_state=0, train_size=10)[0])
    some = draw_at_random(100, 7, 0)
    assert len(set(some)) == 7 and set(some) != set(draw_at_random(100, 7, 1))
    assert sorted(draw_at_random(5, None, 0)) == list(range(5))


@pytest.mark.parametrize(
    ("counts", "limit", "wanted"),
    [
        ((700, 301), 1000, (699, 301)),  # what is left out is less than a class each
        ((269, 270), 538, (269, 269)),
        ((60, 39, 1), 70, (42, 27, 1)),  # a class of one item, which cannot be in both parts
        ((5, 3, 1), 3, (2, 1, 0)),
    ],
)
def test_a_limit_keeps_the_shares_whatever_is_left_out(counts, limit, wanted) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    drawn = draw_by_class(labels, limit, 0)
    kept = np.bincount(labels[drawn], minlength=len(counts))
    assert len(set(drawn)) == limit and np.abs(kept - limit * np.array(counts) / len(labels)).max() < 1
    assert kept.tolist() == list(wanted)
    assert list(drawn) == list(draw_by_class(labels, limit, 0)) != list(draw_by_class(labels, limit, 1))


def test_the_fixed_part_does_not_depend_on_the_order_of_the_draw() -> None:
    one, two = draw_at_random(50, None, 0), draw_at_random(50, None, 1)
    places = some_in_order(one, 10, 3)
    assert places == sorted(places) and len(places) == 10
    assert set(one[places]) == set(two[some_in_order(two, 10, 3)]) != set(one[some_in_order(one, 10, 4)])
    assert set(one[places]) != set(range(10)) and places != list(range(10))
    assert some_in_order(one, 60, 3) == list(range(50))


def test_a_limit_of_fewer_items_than_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot draw dataset\.limit items from 9 items by class"):
        draw_by_class(np.arange(9) // 3, 2, 0)
