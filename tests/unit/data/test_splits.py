"""Splits are found by their names."""

import pytest

from foura.data.splits import (
    check_column,
    refuse_splits_within,
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
