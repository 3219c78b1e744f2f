"""Power of paired comparisons: the difference that a number of seeds can show, and the seeds that a difference needs."""

import functools
import math

import numpy as np
from scipy import optimize, stats

POWER = 0.8  # the share of cases in which a test is to find what is there
MOST = 1000  # seeds that are considered


def power_to_differ(difference: float, spread: float, seeds: int, level: float, item: float = 0.0) -> float:
    """Chance that the interval of the difference excludes zero.

    Args:
        difference: the true one. spread: true standard deviation of the differences over seeds, above 0.
        level: two-sided. item: no interval is narrower than ± one item.
    """
    half, error = _halves(spread, seeds, level / 2, item), spread / math.sqrt(seeds)
    return float((stats.norm.sf((half - difference) / error) + stats.norm.cdf((-half - difference) / error)).mean())


def power_to_equal(
    difference: float, margin: float, spread: float, seeds: int, level: float, item: float = 0.0
) -> float:  # fmt: skip
    """Chance that two one-sided t-tests, each at `level`, show the difference to be within ± margin."""
    room, error = margin - _halves(spread, seeds, level, item), spread / math.sqrt(seeds)
    inside = stats.norm.cdf((room - difference) / error) - stats.norm.cdf((-room - difference) / error)
    return float(np.where(room > 0, inside, 0.0).mean())


def detectable_difference(seeds: int, spread: float, level: float, item: float = 0.0) -> float:
    """The smallest true difference that is found with POWER."""
    if spread == 0:
        return item
    high = spread + item
    while power_to_differ(high, spread, seeds, level, item) < POWER:
        high *= 2
    return float(
        optimize.brentq(lambda difference: power_to_differ(difference, spread, seeds, level, item) - POWER, 0.0, high)
    )


def seeds_to_decide(
    seeds: int, difference: float, spread: float, margin: float, level: float, item: float = 0.0
) -> float:  # fmt: skip
    """Number of seeds, above `seeds`, that decide a comparison with POWER if its difference and spread stay as they are.

    Decided either way: the interval excludes zero, or lies within ± margin (nan: none is declared). inf: more than MOST.
    """

    def decided(count: int) -> bool:
        return (
            power_to_differ(difference, spread, count, level, item) >= POWER
            or power_to_equal(difference, margin, spread, count, level, item) >= POWER
        )

    low, high = seeds, MOST
    if spread == 0 or not decided(high):
        return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return float(high)


def _halves(spread: float, seeds: int, tail: float, item: float) -> np.ndarray:
    """Half widths of intervals with this share in each tail, over the distribution of the estimated spread.

    Averaged over its quantiles, as scipy's noncentral t gives nan for few degrees of freedom and a large shift.
    """
    estimates = spread * _quantiles(seeds)
    return np.maximum(stats.t.ppf(1 - tail, seeds - 1) * estimates / math.sqrt(seeds), item)


@functools.lru_cache(maxsize=2048)
def _quantiles(seeds: int) -> np.ndarray:
    """Quantiles of the estimated standard deviation of so many normal values, over the true one."""
    shares = (np.arange(1000) + 0.5) / 1000
    return np.sqrt(stats.chi2.ppf(shares, seeds - 1) / (seeds - 1))
