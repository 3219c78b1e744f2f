"""One verdict over several tasks: interquartile mean and probability of improvement (Agarwal et al., arXiv 2108.13264).

Differences of each task are in units of its margin, so that tasks of different metrics can be averaged: 1 is a difference
that just matters, positive is better. The bootstrap draws pairs of runs within every task (strata), so that its intervals
are about these tasks and other seeds, not about other tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from foura.analysis.statistics import LEVEL, ROUNDING

RESAMPLES = 5000


@dataclass(frozen=True)
class Task:
    """The paired runs of one task.

    Attributes:
        candidate, baseline: values (seeds,), larger is better. unit: the margin.
        item: the step of the values, 1 / items for shares of counted items; nan if their number is unknown.
    """

    candidate: np.ndarray
    baseline: np.ndarray
    unit: float
    item: float = 0.0

    @property
    def differences(self) -> np.ndarray:
        """(seeds,) in units of the margin."""
        return (self.candidate - self.baseline) / self.unit


@dataclass(frozen=True)
class Overall:
    """An adapter over tasks.

    Attributes:
        tasks, pairs: how many. mean: interquartile mean of the differences, in margins.
        low, high: its interval; inner_low, inner_high: that of twice the level, for equivalence within ± 1. None is narrower
            than ± one item, the mean over the tasks; nan where differences without spread count an unknown number of items.
        improvement: probability that a run of the candidate beats one of the baseline on the same task.
        improvement_low, improvement_high: its interval.
        verdict: as of a single comparison, with the margin 1.
    """

    tasks: int
    pairs: int
    mean: float
    low: float
    high: float
    inner_low: float
    inner_high: float
    improvement: float
    improvement_low: float
    improvement_high: float
    verdict: str


def overall(tasks: Sequence[Task], tests: int = 1, resamples: int = RESAMPLES) -> Overall:
    """Summarise paired runs of several tasks, at LEVEL divided by the tests of the table.

    Raises:
        ValueError: no task, or a task of fewer than three pairs.
    """
    if not tasks or min(len(task.candidate) for task in tasks) < 3:
        raise ValueError("a summary over tasks needs at least one task, and three pairs of runs in each")
    rng, level = np.random.default_rng(0), LEVEL / tests
    drawn = [rng.integers(0, len(task.candidate), (resamples, len(task.candidate))) for task in tasks]
    pairs = sum(len(task.candidate) for task in tasks)
    widened = [_widened(task.differences)[rows] for task, rows in zip(tasks, drawn, strict=True)]
    means = _interquartile(np.concatenate(widened, axis=1))
    wins = np.mean([_resampled_wins(task, rows) for task, rows in zip(tasks, drawn, strict=True)], axis=0)
    item = _item(tasks)
    low, high = _bounds(means, level, pairs - len(tasks), item)
    inner_low, inner_high = _bounds(means, 2 * level, pairs - len(tasks), item)
    verdict = "undecided"
    if low > 0 or high < 0:
        verdict = "better" if low > 0 else "worse"
    elif inner_low > -1 and inner_high < 1:
        verdict = "equivalent"
    return Overall(
        tasks=len(tasks),
        pairs=pairs,
        mean=float(_interquartile(np.concatenate([task.differences for task in tasks]))),
        low=low,
        high=high,
        inner_low=inner_low,
        inner_high=inner_high,
        improvement=float(np.mean([_wins(task).mean() for task in tasks])),
        improvement_low=float(np.quantile(wins, level / 2)),
        improvement_high=float(np.quantile(wins, 1 - level / 2)),
        verdict=verdict,
    )


def _item(tasks: Sequence[Task]) -> float:
    """One item in margins, the mean over tasks; of an unknown number of items 0, or nan where that hides all spread."""
    steps = [task.item / task.unit for task in tasks]
    hidden = any(math.isnan(task.item) and _alike(task) for task in tasks)
    return math.nan if hidden else float(np.nan_to_num(steps).mean())


def _alike(task: Task) -> bool:
    """True if the differences of a task differ by rounding alone."""
    return bool(np.ptp(task.candidate - task.baseline) <= ROUNDING * np.abs(task.baseline).max())


def _bounds(means: np.ndarray, level: float, degrees: int, item: float) -> tuple[float, float]:
    """Quantiles of the resampled means, moved apart by the ratio of t's quantile to the normal's, as for any mean of few.

    At least one item from the middle, as equal counts do not show equal chances.
    """
    middle = means.mean()
    ratio = stats.t.ppf(1 - level / 2, degrees) / stats.norm.ppf(1 - level / 2)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    least = item * (1 + ROUNDING)
    below, above = np.maximum([(middle - low) * ratio, (high - middle) * ratio], least)
    return float(middle - below), float(middle + above)


def _interquartile(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis."""
    return stats.trim_mean(values, 0.25, axis=-1)


def _widened(differences: np.ndarray) -> np.ndarray:
    """Differences spread by √(n / (n - 1)) about their mean: a resample of n has a variance that is too small by that."""
    mean, count = differences.mean(), len(differences)
    return mean + (differences - mean) * math.sqrt(count / (count - 1))


def _wins(task: Task) -> np.ndarray:
    """(seeds, seeds): 1 where a run of the candidate beats one of the baseline, ½ for a tie."""
    own, base = task.candidate[:, None], task.baseline[None]
    return (own > base) + 0.5 * (own == base)


def _resampled_wins(task: Task, rows: np.ndarray) -> np.ndarray:
    """(resamples,): the share of wins for each resample of pairs. rows: (resamples, seeds)."""
    seeds = rows.shape[1]
    counts = (rows[:, :, None] == np.arange(seeds)).sum(1)
    return np.einsum("ri,ij,rj->r", counts, _wins(task), counts) / seeds**2
