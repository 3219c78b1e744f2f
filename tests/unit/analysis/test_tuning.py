"""Successive halving, with results worked out by hand."""

import math

import pytest

from foura.analysis.tuning import Round, affordable, beyond, choose, rounds, runs, survivors


def test_each_round_has_half_the_values_and_twice_the_seeds() -> None:
    assert rounds(4, 2) == [Round(4, 1), Round(2, 2)]
    assert rounds(4, 3) == [Round(4, 2), Round(2, 3)]
    assert rounds(5, 3) == [Round(5, 1), Round(3, 2), Round(2, 3)]
    assert rounds(8, 4) == [Round(8, 1), Round(4, 2), Round(2, 4)]
    assert rounds(2, 3) == [Round(2, 3)]
    assert rounds(1, 3) == []


def test_the_runs_of_a_grid() -> None:
    assert runs(4, 2) == 4 + 2
    assert runs(4, 3) == 4 * 2 + 2
    assert runs(8, 4) == 8 + 4 + 2 * 2
    assert runs(2, 3) == 2 * 3


def test_tuning_costs_at_most_twice_the_comparison() -> None:
    assert affordable(4, 3, compared=5) == 3  # 10 runs for 5
    assert affordable(4, 9, compared=5) == 3  # 4 tuning seeds would be 4 * 2 + 2 * 2 = 12 runs
    assert affordable(4, 3, compared=3) == 2  # 6 runs for 3
    assert affordable(4, 3, compared=2) == 1
    assert affordable(4, 3, compared=1) == 0
    for values in range(2, 12):
        for compared in range(1, 12):
            seeds = affordable(values, 6, compared)
            assert seeds == 0 or runs(values, seeds) <= 2 * compared


def test_the_better_half_stays() -> None:
    accuracies = {1e-3: [0.5, 0.7], 3e-3: [0.9, 0.5], 1e-2: [0.1, 0.2], 3e-2: [0.95, None]}
    assert survivors(accuracies, sign=1, keep=2) == [3e-3, 1e-3]  # means 0.7 and 0.6; 3e-2 diverged once
    assert survivors(accuracies, sign=-1, keep=2) == [1e-2, 1e-3]  # as losses
    assert survivors({1: [0.5], 2: [0.5], 3: [0.5]}, sign=1, keep=2) == [1, 2]  # of equals the first
    assert survivors({1: [None], 2: [None]}, sign=1, keep=1) == []


@pytest.mark.parametrize(
    ("results", "chosen"),
    [
        ({1: [0.9], 2: [0.5, 0.6], 3: [0.5, 0.5]}, 2),  # 1 was tried at one seed alone
        ({1: [0.5, 0.5], 2: [0.9, None], 3: [0.4, 0.6]}, 1),  # 2 diverged; of equals the first
        ({1: [0.5, 0.5], 2: [0.9, 0.8, None]}, 1),  # 2 diverged at the third seed, where 1 was not tried
        ({1: [None, None], 2: [0.2, None], 3: [0.9, None, None]}, 3),  # every one diverged; one finished run each
        ({1: [None, None], 2: [0.2, 0.1, None], 3: [0.9, None, None]}, 2),  # 2 finished more often
        ({1: [None], 2: [None]}, None),
        ({}, None),
    ],
)
def test_the_chosen_value(results, chosen) -> None:
    assert choose(results, sign=1) == chosen


def test_of_losses_the_smallest_is_chosen() -> None:
    assert choose({1: [0.9, 0.8], 2: [0.5, 0.6], 3: [0.7, 0.5]}, sign=-1) == 2


def test_a_grid_is_widened_where_its_edge_is_best() -> None:
    grid = [3e-4, 1e-3, 3e-3, 1e-2]
    assert beyond(grid, 1e-3) is None and beyond(grid, 3e-3) is None
    assert beyond(grid, 1e-2) == pytest.approx(0.03)  # 1e-2 * 1e-2 / 3e-3 = 0.033
    assert beyond(grid, 3e-4) == pytest.approx(9e-5)
    assert beyond([0.0, 0.1, 0.2], 0.2) == pytest.approx(0.3) and beyond([0.0, 0.1, 0.2], 0.0) is None
    assert beyond([1e-3, 1e-3, 1e-2], 1e-3) == pytest.approx(1e-4)
    assert math.isnan(beyond([1e-3], 1e-3))
