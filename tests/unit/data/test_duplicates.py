"""Copies of held-out items in the training data, counted by hand."""

import numpy as np
import pytest

from foura.data.duplicates import image_contents, kept_items
from foura.errors import UserError

CONTENTS = {"train": list("abcdex"), "validation": list("axy"), "test": list("bbyz")}
NAMES = {split: [f"{split} {item}" for item in items] for split, items in CONTENTS.items()}


def test_copies_are_counted_and_kept(capsys) -> None:
    kept = kept_items(CONTENTS, NAMES, "keep")
    assert kept == {"train": [0, 1, 2, 3, 4, 5], "validation": [0, 1, 2], "test": [0, 1, 2, 3]}
    said = capsys.readouterr().out
    assert "2 of 4 test items are also in the training data (exact copies, such as test b)" in said
    assert "2 of 3 validation items are also in the training data" in said
    assert "1 of 4 test items are also in the validation data" in said
    assert "dataset.duplicates=drop" in said and said.count("\n") == 1


def test_copies_are_left_out_of_what_is_trained_on(capsys) -> None:
    """Test data stays whole, validation data loses what is in the test data."""
    kept = kept_items(CONTENTS, NAMES, "drop")
    assert kept == {"train": [2, 3, 4], "validation": [0, 1], "test": [0, 1, 2, 3]}
    assert "1 are taken out of the training data" in capsys.readouterr().out


def test_copies_are_refused() -> None:
    with pytest.raises(UserError, match=r"2 of 4 test items .* Take them out, or set dataset\.duplicates=drop"):
        kept_items(CONTENTS, NAMES, "refuse")


def test_nothing_is_said_where_there_are_none(capsys) -> None:
    contents = {"train": [1, 1], "validation": [2], "test": [3]}
    assert kept_items(contents, {}, "refuse")["train"] == [0, 1]  # twice within a split is not a leak
    assert not capsys.readouterr().out


def test_nothing_left_to_train_on_is_refused() -> None:
    contents = {"train": [1], "validation": [2], "test": [1]}
    with pytest.raises(UserError, match="nothing is left of the training data"):
        kept_items(contents, {split: ["x"] for split in contents}, "drop")


def test_images_are_equal_byte_for_byte(tmp_path) -> None:
    for name, content in {"a": b"12", "b": b"12", "c": b"34", "d": b"567"}.items():
        (tmp_path / name).write_bytes(content)
    found = image_contents({"train": [str(tmp_path / name) for name in "acd"], "test": [str(tmp_path / "b"), b"56"]})
    assert found["train"][0] == found["test"][0]
    assert len({*found["train"], *found["test"]}) == 4
    array = np.zeros((2, 3), np.uint8)
    assert (
        image_contents({"train": [array], "test": [array.copy(), array + 1]})["test"].index(
            image_contents({"train": [array, array]})["train"][0]
        )
        == 0
    )
