"""Splits are cut so that validation and test data are the same for every run; items are drawn by class and seed."""

import numpy as np
import pytest

from foura.data.draws import cut_at_random, cut_by_class, draw_at_random, draw_by_class, missing_shares, some_in_order
from foura.errors import UserError


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
