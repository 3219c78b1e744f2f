"""Intervals over seeds and test items: would the difference hold on another draw of the test set, too?

The paired differences D (seeds, items) have effects of the seed, of the item, and of both together. The variance of their
mean is that of the seeds' means over the seeds, plus that of the items' means over the items, less what both have counted of
the third (two-way random effects); the interval is Student's t with Satterthwaite's degrees of freedom. A bootstrap that
draws seeds and items counts the third effect three times, and covers 99 % where this covers 95 (docs/statistics.md).
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def interval(differences: ArrayLike, level: float) -> tuple[float, float]:
    """(low, high) of the mean difference over seeds and items, of confidence 1 - level.

    Never narrower than the interval over seeds alone would be with as many degrees of freedom.

    Args:
        differences: (seeds, items) of candidate minus baseline, at least two of each.

    Raises:
        ValueError: fewer than two seeds or items.
    """
    D = np.asarray(differences, dtype=float)
    if D.ndim != 2 or min(D.shape) < 2:
        raise ValueError(f"an interval over items needs at least two seeds and two items, got {D.shape}")
    seeds, items = D.shape
    mean, by_seed, by_item = D.mean(), D.mean(1), D.mean(0)
    rest = D - by_seed[:, None] - by_item[None] + mean
    of_seeds, of_items = by_seed.var(ddof=1) / seeds, by_item.var(ddof=1) / items
    of_both = (rest**2).sum() / ((seeds - 1) * (items - 1)) / (seeds * items)
    variance = max(of_seeds, of_items, of_seeds + of_items - of_both)
    if variance == 0:
        return float(mean), float(mean)
    parts = np.array([of_seeds, of_items])
    degrees = parts.sum() ** 2 / (parts**2 / np.array([seeds - 1, items - 1])).sum()
    half = stats.t.ppf(1 - level / 2, degrees) * math.sqrt(variance)
    return float(mean - half), float(mean + half)
