"""The summary over tasks, against values worked out by hand and by simulation."""

import numpy as np
import pytest

from foura.analysis.tasks import Task, overall
from tests.helpers.simulation import documented


def task(differences, unit=1.0, seed=0) -> Task:
    base = np.random.default_rng(seed).normal(10, 1, len(differences))
    return Task(base + np.array(differences), base, unit)


def test_the_interquartile_mean_of_all_differences_in_margins() -> None:
    """(-8, 1, 2, 3) and (2, 4, 6, 80) in units of 1 and 2: of -8, 1, 1, 2, 2, 3, 3, 40 the middle four are 1, 2, 2, 3."""
    found = overall([task([-8, 1, 2, 3]), task([2, 4, 6, 80], unit=2.0)])
    assert found.mean == pytest.approx(2.0) and (found.tasks, found.pairs) == (2, 8)


def test_the_probability_of_improvement_is_over_all_pairs_of_runs_of_a_task() -> None:
    """1, 3, 5 against 2, 3, 4: wins 0 + 1½ + 3 of 9; a second task that always wins makes the mean of both."""
    half, all_of_them = Task(np.array([1.0, 3, 5]), np.array([2.0, 3, 4]), 1.0), Task(np.ones(3), np.zeros(3), 1.0)
    assert overall([half]).improvement == pytest.approx(4.5 / 9)
    found = overall([half, all_of_them])
    assert found.improvement == pytest.approx((0.5 + 1.0) / 2)
    assert 0 <= found.improvement_low <= found.improvement <= found.improvement_high <= 1


def test_verdicts() -> None:
    rng = np.random.default_rng(0)

    def of(mean: float, spread: float) -> str:
        return overall([task(rng.normal(mean, spread, 10), seed=n) for n in range(3)]).verdict

    assert (of(2, 0.5), of(-2, 0.5), of(0, 0.3), of(0.0, 4.0)) == ("better", "worse", "equivalent", "undecided")


def test_equivalence_is_judged_by_the_narrower_interval() -> None:
    seen = set()
    for spread in np.linspace(0.5, 1.5, 21):
        found = overall([task(spread * np.array([-2, -1, -1, 0, 0, 1, 1, 2]))])
        within = found.inner_low > -1 and found.inner_high < 1
        assert found.low < found.inner_low < 0 < found.inner_high < found.high
        assert found.verdict == ("equivalent" if within else "undecided")
        seen.add((found.verdict, found.low > -1 and found.high < 1))
    assert seen == {("equivalent", True), ("equivalent", False), ("undecided", False)}


def test_all_pairs_of_a_task_are_drawn_whatever_the_others_have() -> None:
    """Of 0 0 0 and 0 0 0 30 30 30 the middle five are 0 0 0 0 30; a draw of the second one's first three is never above 0."""
    found = overall([task([0, 0, 0]), task([0, 0, 0, 30, 30, 30])])
    assert found.mean == pytest.approx(6.0) and found.high > 6.0 and found.pairs == 9


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="three pairs"):
        overall([task([1, 2, 3]), task([1, 2])])
    with pytest.raises(ValueError, match="at least one task"):
        overall([])


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_intervals_over_tasks_cover_as_documented(tasks) -> None:
    rng = np.random.default_rng(tasks)
    for seeds, stated in zip((3, 5, 10), documented("tasks")[str(tasks)], strict=True):
        inside = 0
        for _ in range(600):
            drawn = [Task(rng.normal(size=seeds), rng.normal(size=seeds), 1.0) for _ in range(tasks)]
            found = overall(drawn, resamples=1000)
            inside += found.low <= 0 <= found.high
        assert 100 * inside / 600 == pytest.approx(stated, abs=3.5)
        assert 94.5 <= stated <= 97.5
