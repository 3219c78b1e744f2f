"""Tuning by successive halving: at how many seeds each value is tried, which values stay, and which one is chosen.

Jamieson and Talwalkar (2016, arXiv 1502.07943), with seeds as what is spent. Every run keeps its full length: the best
learning rate of a short run, whose schedule is short too, is not that of a long one.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value", bound=Hashable)
MOST = 2  # tuning runs per run of the comparison


@dataclass(frozen=True)
class Round:
    """One round: `values` are left, and each of them has been tried at the first `seeds` tuning seeds when it ends."""

    values: int
    seeds: int


def rounds(values: int, seeds: int) -> list[Round]:
    """The rounds for a grid of so many values: each has half the values of the one before, at twice the seeds.

    The last round has two values, at all `seeds`; for one value there is nothing to try.
    """
    count = math.ceil(math.log2(values))
    return [Round(math.ceil(values / 2**n), math.ceil(seeds / 2 ** (count - 1 - n))) for n in range(count)]


def runs(values: int, seeds: int) -> int:
    """The number of runs that the rounds take."""
    total = before = 0
    for one in rounds(values, seeds):
        total += one.values * (one.seeds - before)
        before = one.seeds
    return total


def affordable(values: int, seeds: int, compared: int) -> int:
    """The number of tuning seeds, `seeds` at most, that take no more than `MOST` runs per run of the comparison.

    Args:
        compared: seeds of the comparison. 0 is returned where one tuning seed is too many already.
    """
    return max((count for count in range(1, seeds + 1) if runs(values, count) <= MOST * compared), default=0)


def survivors(results: Mapping[Value, Sequence[float | None]], sign: float, keep: int) -> list[Value]:
    """The `keep` values with the best means, the best first; a value that diverged at any seed is not among them.

    Args:
        results: {value: its validation result at each seed, None where the run diverged}; of equals the first stays.
        sign: 1 where greater is better, else -1.
    """
    means = {
        value: statistics.mean(known)
        for value, found in results.items()
        if (known := [one for one in found if one is not None]) and len(known) == len(found)
    }
    return sorted(means, key=lambda value: -sign * means[value])[:keep]


def choose(results: Mapping[Value, Sequence[float | None]], sign: float) -> Value | None:
    """The value to compare with: of those that never diverged and were tried at the most seeds the one with the best mean.

    Where every value diverged at some seed, the one that finished at the most. None where no run finished.

    Args:
        results, sign: as for `survivors`.
    """

    def merit(value: Value) -> tuple[bool, int, float]:
        known = [one for one in results[value] if one is not None]
        return len(known) == len(results[value]), len(known), sign * statistics.mean(known)

    finished = [value for value, found in results.items() if any(one is not None for one in found)]
    return max(finished, key=merit, default=None)


def beyond(grid: Sequence[float], chosen: float) -> float | None:
    """The value by which to widen a grid whose best value lies at its edge, at the distance of its neighbour; else None.

    A grid of positive numbers is widened by a factor; 0 counts as the end of a grid that begins there (dropout, weight
    decay). A grid of a single value has an edge and no distance: nan.
    """
    ordered = sorted(set(grid))
    if len(ordered) == 1:
        return math.nan
    if chosen not in (ordered[0], ordered[-1]) or chosen == ordered[0] == 0:
        return None
    neighbour = ordered[1] if chosen == ordered[0] else ordered[-2]
    wider = chosen * chosen / neighbour if ordered[0] > 0 else 2 * chosen - neighbour
    return float(f"{wider:.1g}")
