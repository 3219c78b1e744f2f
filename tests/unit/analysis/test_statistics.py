"""The statistics against scipy on given arrays and against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from foura.analysis import statistics
from foura.analysis.statistics import compare

CANDIDATE = {0: 0.91, 1: 0.93, 2: 0.96, 3: 0.92, 4: 0.95}
BASELINE = {0: 0.90, 1: 0.91, 2: 0.95, 3: 0.90, 4: 0.92, 9: 0.5}


def test_a_comparison_is_scipys_on_the_shared_seeds() -> None:
    found = compare(CANDIDATE, BASELINE, more_is_better=True)
    own, base = [CANDIDATE[s] for s in range(5)], [BASELINE[s] for s in range(5)]
    differences = np.subtract(own, base)
    test = stats.ttest_rel(own, base)
    interval = test.confidence_interval(0.95)
    assert found.seeds == 5
    assert found.difference == pytest.approx(differences.mean())
    assert found.p == found.p_adjusted == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.effect == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert found.verdict == "better" and math.isnan(found.needed)
    assert compare(CANDIDATE, BASELINE, more_is_better=False).verdict == "worse"


def test_all_numbers_of_a_table_share_one_level() -> None:
    """Differences 0.01, 0.02, 0.01, 0.02, 0.03: mean 0.018, standard error 0.0083666 / √5 = 0.0037417."""
    found = compare(CANDIDATE, BASELINE, True, tests=10)
    half = stats.t.ppf(1 - 0.0025, 4) * 0.0037417
    assert (found.low, found.high) == pytest.approx((0.018 - half, 0.018 + half), rel=1e-4)
    assert found.p_adjusted == pytest.approx(10 * found.p)
    assert found.p < 0.05 < found.p_adjusted and found.verdict == "undecided"
    assert found.detectable > compare(CANDIDATE, BASELINE, True).detectable


def test_the_interval_excludes_zero_exactly_where_there_is_a_verdict() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        seeds, tests, item = int(rng.integers(3, 9)), int(rng.integers(1, 12)), float(rng.choice([0.0, 0.01, 0.025]))
        own, base = rng.normal(rng.normal(0, 0.05), 0.03, seeds), rng.normal(0, 0.02, seeds)
        if item:
            own, base = np.round(own / item) * item, np.round(base / item) * item
        found = compare(dict(enumerate(own)), dict(enumerate(base)), True, tests=tests, margin=0.05, item=item)
        decided = found.verdict in ("better", "worse")
        assert decided == (found.low > 0 or found.high < 0) == (found.p_adjusted < statistics.LEVEL)
        assert not decided or (found.verdict == "better") == (found.difference > 0)
        assert found.verdict != "equivalent" or abs(found.difference) < 0.05
        seen.add(found.verdict)
    assert seen == {"better", "worse", "equivalent", "undecided"}


def test_equivalence_is_the_interval_of_twice_the_level_within_the_margin() -> None:
    """Differences -0.01, 0, 0.01, 0.02, -0.02: mean 0, standard error 0.0070711; t(0.95, 4) = 2.1318, half 0.015074."""
    base = dict.fromkeys(range(5), 0.5)
    own = dict(enumerate((0.49, 0.5, 0.51, 0.52, 0.48)))
    assert compare(own, base, True, margin=0.0151).verdict == "equivalent"
    assert compare(own, base, True, margin=0.0150).verdict == "undecided"
    assert compare(own, base, True).verdict == "undecided"  # no margin, no equivalence
    share = {seed: 0.0302 * value for seed, value in base.items()}  # 3.02 % of 0.5
    assert compare(own, base, True, margin=share).verdict == "equivalent"
    assert compare(own, base, True, margin=share).margin == pytest.approx(0.0151)


@pytest.mark.parametrize("margin", [0.0, -0.01, {0: 0.1, 1: 0.1, 2: 0.0}])
def test_a_margin_that_is_not_positive_is_refused(margin) -> None:
    values = dict.fromkeys(range(3), 1.0)
    with pytest.raises(ValueError, match="margin must be above 0"):
        compare(values, values, True, margin=margin)
    with pytest.raises(ValueError, match="at least one comparison"):
        compare(values, values, True, tests=0)


def test_few_seeds_and_no_spread_are_undecided_or_equal() -> None:
    few = compare({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.0}, more_is_better=True)
    assert few.verdict == "undecided" and few.seeds == 2 and math.isnan(few.low) and math.isnan(few.needed)
    assert compare({0: 1.0}, {1: 1.0}, True).seeds == 0
    constant = dict.fromkeys(range(5), 1.0)
    same = compare(constant, constant, more_is_better=True, margin=0.01)
    assert same.verdict == "equivalent" and same.difference == 0
    shifted = {seed: value + 0.1 for seed, value in BASELINE.items()}
    assert compare(shifted, BASELINE, True).verdict == "better"  # a computed value is never off by chance alone
    assert compare(shifted, BASELINE, True, item=math.nan).verdict == "undecided"  # … a count of unknown items can be
    overflown = compare({**BASELINE, 0: math.inf}, BASELINE, more_is_better=False, margin=0.01)
    assert overflown.verdict == "undecided" and overflown.difference == math.inf and math.isnan(overflown.low)
    rounding = {seed: value * (1 + 1e-15) for seed, value in BASELINE.items()}
    assert compare(rounding, BASELINE, True).difference == 0


def test_nothing_finer_than_one_item_is_claimed() -> None:
    """40 items: a constant difference of one item is no verdict, of two over ten seeds is; ±0.02 is finer than an item."""
    base = {seed: 0.9 + 0.025 * (seed % 2) for seed in range(10)}
    more = {items: {seed: value + 0.025 * items for seed, value in base.items()} for items in (0, 1, 2)}
    one = compare(more[1], base, True, item=0.025)
    assert one.verdict == "undecided" and one.p == 1.0
    assert (one.low, one.high) == pytest.approx((0.0, 0.05), abs=1e-9)
    assert compare(more[2], base, True, item=0.025).verdict == "better"
    assert compare(more[0], base, True, margin=0.02, item=0.025).verdict == "undecided"
    assert compare(more[0], base, True, margin=0.02, item=0.025).needed == math.inf
    assert compare(more[0], base, True, margin=0.03, item=0.025).verdict == "equivalent"


def test_counts_have_the_spread_that_rounding_to_items_hides() -> None:
    """Differences of exactly two items of 40 at three seeds: spread 0.025 / √6, so that d is 2 √6 and the half width
    4.3027 x 0.0102062 / √3 = 0.025354, more than the item."""
    base = {0: 0.5, 1: 0.6, 2: 0.7}
    found = compare({seed: value + 0.05 for seed, value in base.items()}, base, True, item=0.025)
    assert (found.low, found.high) == pytest.approx((0.05 - 0.025354, 0.05 + 0.025354), abs=1e-6)
    assert found.effect == pytest.approx(2 * math.sqrt(6))
    assert found.p == pytest.approx(2 * stats.t.sf(2 * math.sqrt(6) * math.sqrt(3), 2))


def test_the_seeds_that_would_decide_are_those_of_the_whole_table() -> None:
    """By the power of a t-test at 0.05 / 9: the least number of seeds that finds mean 0.018, spread 0.0083666 in 4 of 5."""

    def power(seeds: int) -> float:
        bound, shift = stats.t.ppf(1 - 0.05 / 18, seeds - 1), 0.018 / 0.0083666 * math.sqrt(seeds)
        return float(stats.nct.sf(bound, seeds - 1, shift))

    table = compare(CANDIDATE, BASELINE, True, tests=9)
    assert table.verdict == "undecided"
    assert table.needed == next(seeds for seeds in range(6, 100) if power(seeds) >= 0.8)


def test_a_mean_has_scipys_interval() -> None:
    sample = [3.1, 2.7, 3.6, 3.3]
    interval = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert statistics.mean_interval(sample) == pytest.approx((3.175, interval.low, interval.high))
    assert statistics.mean_interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    assert math.isnan(statistics.mean_interval([1.0, 2.0])[1]) and math.isnan(statistics.mean_interval([])[0])


def test_slopes_are_per_doubling() -> None:
    """Ranks 4, 16, 64 are two doublings apart: slopes 1, 2 and 1.5 for each doubling."""
    y = [[1.0, 3.0, 5.0], [1.0, 5.0, 9.0], [1.0, 4.0, 7.0]]
    mean, low, high = statistics.slope([4, 16, 64], y)
    half = stats.t.ppf(0.975, 2) * 0.5 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((1.5, 1.5 - half, 1.5 + half))
    assert statistics.slope([4, 16, 64], y, tests=3)[1] < low
