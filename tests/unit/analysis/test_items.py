"""Intervals over seeds and test items: by hand, and by simulation against the table of docs/statistics.md."""

import math

import numpy as np
import pytest
from scipy import stats

from foura.analysis.items import interval
from tests.helpers.simulation import ACCURACIES, LOSSES, SEEDS, covered_with_items, documented


def test_by_hand() -> None:
    """Seeds' means -0.5 and 1.5, items' means 0 and 1, no effect of both together: the variances are 2 / 2 and 0.5 / 2.

    Satterthwaite: (1 + 0.25)² / (1² / 1 + 0.25² / 1) = 1.4706 degrees of freedom.
    """
    half = stats.t.ppf(0.975, 1.5625 / 1.0625) * math.sqrt(1.25)
    assert interval([[-1.0, 0.0], [1.0, 2.0]], 0.05) == pytest.approx((0.5 - half, 0.5 + half))


def test_what_seeds_and_items_have_together_is_counted_once() -> None:
    """Means 0 and 2 on both sides, variances 2 / 2 each; the rest ±1 has 4 / 1 / 4: 1 + 1 - 1, with 2² / (1 + 1) degrees."""
    half = stats.t.ppf(0.975, 2.0)
    assert interval([[0.0, 0.0], [0.0, 4.0]], 0.05) == pytest.approx((1.0 - half, 1.0 + half))


def test_with_items_an_interval_is_wider_and_one_without_any_spread_is_a_point() -> None:
    rng = np.random.default_rng(0)
    D = rng.normal(0.1, 0.1, (5, 1)) + rng.normal(0, 1, (1, 50))
    low, high = interval(D, 0.05)
    alone = stats.ttest_1samp(D.mean(1), 0).confidence_interval(0.95)
    assert low < alone.low and high > alone.high and (low + high) / 2 == pytest.approx(D.mean())
    assert interval(np.full((3, 4), 0.25), 0.05) == (0.25, 0.25)
    with pytest.raises(ValueError, match="two seeds and two items"):
        interval([[1.0, 2.0]], 0.05)


@pytest.mark.parametrize("name", [*LOSSES, *ACCURACIES])
@pytest.mark.parametrize("samples", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_they_cover_as_documented(name, samples) -> None:
    for seeds, percent in zip(SEEDS, documented("effects")[name], strict=True):
        noise = 400 * (percent / 100 * (1 - percent / 100) * (1 / samples + 1 / 6000)) ** 0.5 + 0.06
        assert abs(covered_with_items(name, seeds, samples) - percent) <= noise
