"""Comparing two adapters over seeds: interval, paired test, effect size, and a verdict in words. scipy does the sums."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05  # of all tests; intervals are of 1 - LEVEL
POWER = 0.8  # with which the smallest detectable difference would have been found
RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """How a candidate differs from a baseline, on the seeds that both have.

    Attributes:
        seeds: pairs of runs compared.
        difference: mean of candidate minus baseline. low, high: its bootstrap interval (95 %, BCa).
        effect: difference in units of its spread over seeds (Cohen's d of the pairs); nan where there is no spread.
        p: of the paired t-test. q: p corrected for all comparisons of the table (set by `correct`).
        detectable: the smallest difference that so many seeds show in 4 of 5 cases.
        verdict: "better", "worse", "no detectable difference", or "too few seeds".
    """

    seeds: int
    difference: float
    low: float
    high: float
    effect: float
    p: float
    q: float
    detectable: float
    verdict: str


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean and its bootstrap interval (95 %, BCa); nan bounds below three values."""
    sample = np.asarray(values, dtype=float)
    if len(sample) < 3:
        return float(sample.mean()) if len(sample) else math.nan, math.nan, math.nan
    if np.ptp(sample) == 0:
        return (float(sample[0]),) * 3
    with warnings.catch_warnings():  # BCa is not defined for some samples of very few values: the percentiles are
        warnings.simplefilter("error", stats.DegenerateDataWarning)
        for method in ("BCa", "percentile"):
            try:
                found = stats.bootstrap(
                    (sample,),
                    np.mean,
                    n_resamples=RESAMPLES,
                    confidence_level=1 - LEVEL,
                    method=method,
                    rng=np.random.default_rng(0),
                )
                break
            except stats.DegenerateDataWarning:
                continue
    return float(sample.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)


def compare(
    candidate: Mapping[int, float], baseline: Mapping[int, float], more_is_better: bool, tests: int = 1
) -> Comparison:
    """The comparison of two {seed: value}; q is p until `correct` has seen the whole table.

    Args:
        tests: comparisons in the table; the smallest detectable difference allows for them (Bonferroni).
    """
    shared = sorted(set(candidate) & set(baseline))
    differences = np.array([candidate[seed] - baseline[seed] for seed in shared], dtype=float)
    mean, low, high = mean_interval(differences.tolist())
    spread = float(differences.std(ddof=1)) if len(shared) > 1 else math.nan
    if len(shared) < 3:
        return Comparison(len(shared), mean, low, high, math.nan, math.nan, math.nan, math.nan, "too few seeds")
    if spread == 0:  # the same difference for every seed: no test is defined; zero is equality
        p = 1.0 if mean == 0 else 0.0
        return _judged(Comparison(len(shared), mean, low, high, math.nan, p, p, 0.0, ""), more_is_better)
    p = float(stats.ttest_rel([candidate[s] for s in shared], [baseline[s] for s in shared]).pvalue)
    detectable = spread * detectable_effect(len(shared), LEVEL / tests)
    return _judged(Comparison(len(shared), mean, low, high, mean / spread, p, p, detectable, ""), more_is_better)


def correct(comparisons: Sequence[Comparison], more_is_better: bool) -> list[Comparison]:
    """The comparisons of one table with p corrected for their number (Benjamini and Hochberg) and the verdicts that follow."""
    tested = [one for one in comparisons if not math.isnan(one.p)]
    corrected = iter(stats.false_discovery_control([one.p for one in tested]) if tested else [])
    result = []
    for one in comparisons:
        if not math.isnan(one.p):
            one = _judged(Comparison(**{**one.__dict__, "q": float(next(corrected))}), more_is_better)
        result.append(one)
    return result


def detectable_effect(seeds: int, level: float = LEVEL, power: float = POWER) -> float:
    """The effect size (Cohen's d of the pairs) that a paired t-test of so many seeds finds with this power."""
    threshold = stats.t.ppf(1 - level / 2, seeds - 1)
    # scipy's noncentral t gives nan for few degrees of freedom and a large shift: average its definition over quantiles
    quantiles = (np.arange(4000) + 0.5) / 4000
    spreads = np.sqrt(stats.chi2.ppf(quantiles, seeds - 1) / (seeds - 1))

    def lacking(effect: float) -> float:
        shift = effect * math.sqrt(seeds)
        missed = stats.norm.cdf(threshold * spreads - shift) - stats.norm.cdf(-threshold * spreads - shift)
        return 1 - float(missed.mean()) - power

    high = 1.0
    while lacking(high) < 0:
        high *= 2
    return float(optimize.brentq(lacking, 0.0, high))


def slope(x: Sequence[float], y_by_seed: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(slope, low, high): y against log2 x by least squares for each seed, and the mean of these with its interval.

    Args:
        x: ranks or sizes, at least two different ones. y_by_seed: for each seed its values at `x`.
    """
    logs = np.log2(np.asarray(x, dtype=float))
    return mean_interval([float(stats.linregress(logs, np.asarray(y, dtype=float)).slope) for y in y_by_seed])


def _judged(one: Comparison, more_is_better: bool) -> Comparison:
    verdict = "no detectable difference"
    if one.q < LEVEL:
        verdict = "better" if (one.difference > 0) == more_is_better else "worse"
    return Comparison(**{**one.__dict__, "verdict": verdict})
