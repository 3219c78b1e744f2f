"""The statistics against scipy on given arrays, against values worked out by hand, and on worlds without a difference."""

import math

import numpy as np
import pytest
from scipy import stats

from foura.analysis import statistics

CANDIDATE = {0: 0.91, 1: 0.93, 2: 0.96, 3: 0.92, 4: 0.95}
BASELINE = {0: 0.90, 1: 0.91, 2: 0.95, 3: 0.90, 4: 0.92, 9: 0.5}


def test_a_comparison_is_scipys_on_the_shared_seeds() -> None:
    found = statistics.compare(CANDIDATE, BASELINE, more_is_better=True)
    own, base = [CANDIDATE[s] for s in range(5)], [BASELINE[s] for s in range(5)]
    differences = np.subtract(own, base)
    assert found.seeds == 5
    assert found.difference == pytest.approx(differences.mean())
    assert found.p == pytest.approx(stats.ttest_rel(own, base).pvalue)
    assert found.effect == pytest.approx(differences.mean() / differences.std(ddof=1))
    interval = stats.bootstrap(
        (differences,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.verdict == "better"
    assert statistics.compare(CANDIDATE, BASELINE, more_is_better=False).verdict == "worse"


def test_correction_is_scipys_and_can_take_a_verdict_back() -> None:
    clear = statistics.compare(CANDIDATE, BASELINE, more_is_better=True)
    unclear = statistics.compare(BASELINE, {seed: BASELINE[seed] + (-1) ** seed * 0.01 for seed in range(5)}, True)
    table = [clear] + [unclear] * 9
    corrected = statistics.correct(table, more_is_better=True)
    assert [one.q for one in corrected] == pytest.approx(stats.false_discovery_control([one.p for one in table]))
    assert clear.verdict == "better" and corrected[0].verdict == "no detectable difference"


def test_few_seeds_and_no_spread_are_said() -> None:
    few = statistics.compare({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.0}, more_is_better=True)
    assert few.verdict == "too few seeds" and math.isnan(few.p)
    same = statistics.compare(dict.fromkeys(range(5), 1.0), dict.fromkeys(range(5), 1.0), more_is_better=True)
    assert same.verdict == "no detectable difference" and same.difference == 0
    assert statistics.correct([few, same], True)[0] == few


@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
@pytest.mark.parametrize("level", [0.05, 0.05 / 12])
def test_the_detectable_difference_is_found_with_its_power(seeds, level) -> None:
    """Simulated: as many samples of that effect as stated are found by scipy's test."""
    effect = statistics.detectable_effect(seeds, level)
    samples = np.random.default_rng(seeds).normal(effect, 1.0, (20_000, seeds))
    found = (stats.ttest_1samp(samples, 0.0, axis=1).pvalue < level).mean()
    assert found == pytest.approx(statistics.POWER, abs=0.012)


@pytest.mark.slow
def test_where_nothing_differs_better_comes_up_at_its_nominal_rate() -> None:
    """One comparison a sweep: two-sided at 5 %, so "better" in 2.5 %. Twelve: at least one of either kind in at most 5 %."""
    rng = np.random.default_rng(0)

    def verdicts(comparisons: int) -> list[str]:
        level = rng.normal(0.9, 0.02, 5)  # what the seed does to all adapters alike
        baseline = dict(enumerate(level + rng.normal(0, 0.005, 5)))
        found = [
            statistics.compare(dict(enumerate(level + rng.normal(0, 0.005, 5))), baseline, True, tests=comparisons)
            for _ in range(comparisons)
        ]
        return [one.verdict for one in statistics.correct(found, more_is_better=True)]

    rate = np.mean([verdicts(1) == ["better"] for _ in range(1000)])
    low, high = stats.binom.interval(0.999, 1000, 0.025)
    assert low / 1000 <= rate <= high / 1000
    wrong = np.mean([set(verdicts(12)) != {"no detectable difference"} for _ in range(200)])
    assert wrong <= stats.binom.ppf(0.999, 200, 0.05) / 200


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        level = rng.normal(0.9, 0.02, 5)
        found += (
            statistics.compare(
                dict(enumerate(level + 0.02 + rng.normal(0, 0.005, 5))), dict(enumerate(level)), True
            ).verdict
            == "better"
        )
    assert found >= 95


def test_intervals_cover() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        _, low, high = statistics.mean_interval(rng.normal(3.0, 1.0, 20).tolist())
        inside += low <= 3.0 <= high
    assert 0.88 <= inside / 200 <= 0.99
    assert statistics.mean_interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    assert math.isnan(statistics.mean_interval([1.0, 2.0])[1])


def test_slopes_are_per_doubling() -> None:
    mean, low, high = statistics.slope([4, 16, 64], [[1.0, 3.0, 5.0], [1.0, 5.0, 9.0], [1.0, 4.0, 7.0]])
    assert mean == pytest.approx(1.5)
    assert low < mean < high
