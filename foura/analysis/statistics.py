"""Paired comparison of two adapters over seeds: interval, test, equivalence and verdict.

One rule throughout: Student's t on the differences of the pairs, at LEVEL divided by the number of comparisons in the
table (Bonferroni). The interval, the adjusted p-value, the detectable difference and the verdict are of that level, so
that the interval excludes zero exactly where the verdict is "better" or "worse". How well the intervals cover is measured
in docs/statistics.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from foura.analysis.power import detectable_difference, seeds_to_decide

LEVEL = 0.05  # of a whole table: the chance of any false "better" or "worse" in it
LEAST = 3  # shared seeds; with fewer there is no interval
ROUNDING = 1e-9  # of a value: smaller differences are rounding


@dataclass(frozen=True)
class Comparison:
    """Difference of a candidate from a baseline on the seeds that both have.

    Attributes:
        seeds: number of pairs.
        difference: mean of candidate minus baseline; not finite where a run's value is not (a loss that overflows),
            of which no interval is made.
        low, high: interval of the difference at the level of the table; nan if there is none.
        inner_low, inner_high: interval of twice that level, which a constant margin is compared with.
        effect: difference over its standard deviation (Cohen's d of the pairs); nan without spread.
        p: of the paired t-test. p_adjusted: p times the comparisons of the table, at most 1.
        detectable: difference that so many seeds find in 4 of 5 cases.
        margin: δ, the largest difference that counts as none (mean over seeds); nan if none is declared.
        verdict: "better", "worse", "equivalent" or "undecided".
        needed: of an undecided comparison, about how many seeds would decide it; inf if more than 1000, nan if unknown.
    """

    seeds: int
    difference: float
    low: float = math.nan
    high: float = math.nan
    inner_low: float = math.nan
    inner_high: float = math.nan
    effect: float = math.nan
    p: float = math.nan
    p_adjusted: float = math.nan
    detectable: float = math.nan
    margin: float = math.nan
    verdict: str = "undecided"
    needed: float = math.nan


def interval(values: ArrayLike, level: float = LEVEL, item: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high) along the last axis: the t interval of confidence 1 - level.

    Args:
        values: (..., seeds), at least two seeds.
        item: the step of the values, 1 / items for shares of counted items. Rounding to it hides a standard deviation of
            item / √6 in a difference, and no interval is narrower than ± one item.
    """
    sample = np.asarray(values, dtype=float)
    seeds = sample.shape[-1]
    mean = sample.mean(-1)
    spread = np.maximum(sample.std(-1, ddof=1), item / math.sqrt(6))
    half = np.maximum(stats.t.ppf(1 - level / 2, seeds - 1) * spread / math.sqrt(seeds), item * (1 + ROUNDING))
    return mean, mean - half, mean + half


def equivalent(differences: ArrayLike, margin: ArrayLike, level: float = LEVEL, item: float = 0.0) -> np.ndarray:
    """True where two one-sided t-tests show |difference| < margin (TOST; Schuirmann, 1987), each at `level`.

    For a constant margin the same as the (1 - 2 level) interval within ± margin.

    Args:
        differences: (..., seeds). margin: a number, or one for each seed (a share of the baseline's value there).
    """
    differences = np.asarray(differences, dtype=float)
    _, _, high = interval(differences - margin, 2 * level, item)
    _, low, _ = interval(differences + margin, 2 * level, item)
    return (high < 0) & (low > 0)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """(mean, low, high) of one sample; nan bounds for fewer than three values, and a nan mean for none."""
    if len(values) < LEAST:
        return float(np.mean(values)) if len(values) else math.nan, math.nan, math.nan
    mean, low, high = interval(values, level)
    return float(mean), float(low), float(high)


def compare(
    candidate: Mapping[int, float],
    baseline: Mapping[int, float],
    more_is_better: bool,
    tests: int = 1,
    margin: float | Mapping[int, float] | None = None,
    item: float = 0.0,
) -> Comparison:
    """Compare two {seed: value} on their shared seeds.

    Args:
        tests: comparisons in the table that this one belongs to.
        margin: δ > 0, or one for each seed; None: equivalence is not tested.
        item: the step of the values (see `interval`); nan for counted values with an unknown number of items, where
            differences without spread are undecided.

    Raises:
        ValueError: a margin that is not positive, or fewer than one test.
    """
    if tests < 1:
        raise ValueError(f"a table has at least one comparison, got {tests}")
    shared = sorted(set(candidate) & set(baseline))
    differences, margins = _differences(candidate, baseline, shared), _margins(margin, shared)
    mean, delta = (float(part.mean()) if shared else math.nan for part in (differences, margins))
    if len(shared) < LEAST or not np.isfinite(differences).all():
        return Comparison(len(shared), mean, margin=delta)
    spread = float(differences.std(ddof=1))
    if spread == 0 and math.isnan(item):
        return Comparison(len(shared), mean, margin=delta)
    item, level = 0.0 if math.isnan(item) else item, LEVEL / tests
    _, low, high = (float(value) for value in interval(differences, level, item))
    _, inner_low, inner_high = (float(value) for value in interval(differences, 2 * level, item))
    spread = max(spread, item / math.sqrt(6))
    p = _p(mean, spread, len(shared), item)
    verdict, needed = "undecided", math.nan
    if low > 0 or high < 0:
        verdict = "better" if (mean > 0) == more_is_better else "worse"
    elif bool(equivalent(differences, margins, level, item)):
        verdict = "equivalent"
    else:
        needed = seeds_to_decide(len(shared), mean, spread, delta, level, item)
    return Comparison(
        seeds=len(shared),
        difference=mean,
        low=low,
        high=high,
        inner_low=inner_low,
        inner_high=inner_high,
        effect=mean / spread if spread else math.nan,
        p=p,
        p_adjusted=min(1.0, p * tests),
        detectable=detectable_difference(len(shared), spread, level, item),
        margin=delta,
        verdict=verdict,
        needed=needed,
    )


def slope(
    x: Sequence[float], y_by_seed: Sequence[Sequence[float]], tests: int = 1
) -> tuple[float, float, float]:  # fmt: skip
    """(slope, low, high): least squares of y against log2 x for each seed, then the mean over seeds and its interval.

    Args:
        x: ranks or sizes, at least two different ones. y_by_seed: (seeds, len(x)).
        tests: slopes in the table that this one belongs to.
    """
    logs = np.log2(np.asarray(x, dtype=float))
    slopes = [float(stats.linregress(logs, np.asarray(y, dtype=float)).slope) for y in y_by_seed]
    return mean_interval(slopes, LEVEL / tests)


def _differences(candidate: Mapping[int, float], baseline: Mapping[int, float], seeds: Sequence[int]) -> np.ndarray:
    """Candidate minus baseline for each seed, where what differs by floating-point rounding alone is equal."""
    own, base = (np.array([values[seed] for seed in seeds], dtype=float) for values in (candidate, baseline))
    with np.errstate(invalid="ignore"):  # of two infinities
        differences = own - base
    if not np.isfinite(differences).all():
        return differences
    rounding = ROUNDING * float(np.abs(base).max(initial=0.0))
    if len(seeds) and np.ptp(differences) <= rounding:
        differences = np.full(len(seeds), differences[0])
    return np.where(np.abs(differences) <= rounding, 0.0, differences)


def _margins(margin: float | Mapping[int, float] | None, seeds: Sequence[int]) -> np.ndarray:
    """δ for each seed; nan where none is declared, with which every test of equivalence fails."""
    if margin is None:
        return np.full(len(seeds), math.nan)
    each = np.array([margin[seed] for seed in seeds]) if isinstance(margin, Mapping) else np.full(len(seeds), margin)
    if (each <= 0).any():
        raise ValueError(f"a margin must be above 0, got {each.min():g}")
    return each


def _p(mean: float, spread: float, seeds: int, item: float) -> float:
    """Two-sided p of the paired t-test; 1 for a difference of at most one item, which no interval can exclude."""
    if abs(mean) <= item * (1 + ROUNDING):
        return 1.0
    if spread == 0:
        return 0.0
    return float(2 * stats.t.sf(abs(mean) / spread * math.sqrt(seeds), seeds - 1))
