"""Sweeps with tuned keys: rounds of runs at tuning seeds, then the comparison at the value that each cell chose.

A cell is an adapter in a condition: everything that a sweep varies but the tuned keys and the seed. Tuning runs do not use the
test data (evaluation.test=false), and their seeds are not those of the comparison. Which runs are next follows from the
results that are there, so that the same command resumes a sweep wherever it was killed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foura.analysis.tuning import MOST, affordable, beyond, choose, rounds, runs, survivors
from foura.errors import UserError
from foura.metrics import METRICS
from foura.sweep.plan import Job, key_of, varied_keys

UNTESTED = "evaluation.test=false"  # the override of a tuning run
Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """The result of a tuning run.

    Attributes:
        metric: key of the metric that the run is judged by. value: of that metric on validation data; None if it diverged.
    """

    metric: str
    value: float | None


@dataclass
class Cell:
    """An adapter in a condition.

    Attributes:
        name: its overrides, as in "adapter=lora,rank=4". compared: {value of the grid: its runs of the comparison}.
        chosen: the value to compare with; None as long as it is not known, or if every run diverged.
        decided: every tuning run that this takes has its result. seeds: those that the chosen value was tried at.
    """

    name: Overrides
    compared: dict[Overrides, list[Overrides]] = field(default_factory=dict)
    chosen: Overrides | None = None
    decided: bool = False
    result: Result | None = None
    seeds: int = 0


class Tuning:
    """The tuning of a sweep's keys, and the comparison that follows.

    Args:
        jobs: the overrides of every run of the full product of the sweep's values.
        keys: the tuned ones. seeds: those that tuning may use. seed: that of the comparison, where the sweep has none.
        result: returns the result of a run, None where it has none yet.

    Attributes:
        rounds: of every cell. seeds: as many tuning seeds as cost at most twice the comparison.

    Raises:
        UserError: a grid of one value, a tuning seed that the comparison has, or a grid that is too large for it.
    """

    def __init__(
        self,
        jobs: Sequence[Sequence[str]],
        keys: Sequence[str],
        seeds: Sequence[int],
        seed: int,
        result: Callable[[Overrides], Result | None],
    ) -> None:
        check_grid(jobs, keys)
        self.keys, self.varied, self.result = tuple(keys), varied_keys(jobs), result
        self.cells = _cells(jobs, keys)
        first = next(iter(self.cells))
        self.grid = list(first.compared)
        compared = {_seed_of(job, seed) for job in first.compared[self.grid[0]]}
        self.seeds = self._affordable(seeds, compared)
        self.rounds = rounds(len(self.grid), len(self.seeds))

    def _affordable(self, seeds: Sequence[int], compared: set[int]) -> list[int]:
        distinct = list(dict.fromkeys(seeds))
        shared = sorted(compared & set(distinct))
        if shared:
            raise UserError(
                f"seed {shared[0]} is both in tuning_seeds and in the comparison, which must not be tuned on: choose other "
                f"tuning_seeds (now {', '.join(map(str, distinct))})."
            )
        count = affordable(len(self.grid), len(distinct), len(compared))
        if count == 0:
            raise UserError(
                f"tuning {', '.join(self.keys)} over {len(self.grid)} values takes {runs(len(self.grid), 1)} runs of each "
                f"adapter and condition, more than {MOST} times the {len(compared)} of the comparison: add seeds "
                f"('seed=range({-(-runs(len(self.grid), 1) // MOST)})') or leave values out."
            )
        return distinct[:count]

    def jobs(self) -> list[Job]:
        """Every run that the sweep can have, those of tuning first; which values are tried and compared may be open."""
        tuning = [job for cell in self.cells for job in self._tuning_jobs(cell)]
        return [*tuning, *(job for cell in self.cells for job in self._compared_jobs(cell))]

    def _tuning_jobs(self, cell: Cell) -> list[Job]:
        """The tuning runs of a cell, from whose results it takes its choice once all of them are there."""
        jobs: list[Job] = []
        alive, known, before = self.grid, True, 0
        tried: dict[Overrides, list[Result | None]] = {value: [] for value in self.grid}
        for one, keep in zip(self.rounds, [*(later.values for later in self.rounds[1:]), 1], strict=True):
            for value in alive:
                made = [(*cell.name, *value, f"seed={seed}", UNTESTED) for seed in self.seeds[before : one.seeds]]
                jobs += [Job(job, () if known else self.keys) for job in made]
                tried[value] += [self.result(job) for job in made] if known else [None]
            known = known and None not in (found for value in alive for found in tried[value])
            alive, before = survivors(*_values(tried, alive), keep) if known else self.grid[:keep], one.seeds
            if known and len(alive) < 2:
                break
        self._decide(cell, tried, known)
        return jobs

    def _compared_jobs(self, cell: Cell) -> list[Job]:
        if not cell.decided:
            return [Job(job, self.keys) for job in cell.compared[self.grid[0]]]
        return [] if cell.chosen is None else [Job(job) for job in cell.compared[cell.chosen]]

    def _decide(self, cell: Cell, tried: Mapping[Overrides, Sequence[Result | None]], known: bool) -> None:
        cell.decided = known
        cell.chosen = choose(*_values(tried, self.grid)) if known else None
        found = [one for one in tried[cell.chosen] if one is not None and one.value is not None] if cell.chosen else []
        cell.seeds = len(found)
        if found:
            mean = sum(one.value for one in found if one.value is not None) / len(found)
            cell.result = Result(found[0].metric, mean)

    def most(self) -> tuple[int, int]:
        """The number of tuning runs, at most, and that of runs of the comparison."""
        compared = sum(len(cell.compared[self.grid[0]]) for cell in self.cells)
        return len(self.cells) * runs(len(self.grid), len(self.seeds)), compared

    def every(self) -> list[Overrides]:
        """The runs of all values, of which a part will be executed."""
        tuning = [
            (*cell.name, *value, f"seed={seed}", UNTESTED)
            for cell in self.cells
            for value in self.grid
            for seed in self.seeds
        ]
        return [*tuning, *(job for cell in self.cells for jobs in cell.compared.values() for job in jobs)]

    def said(self, cell: Cell) -> str:
        """The choice of a cell in a sentence, and whether it lies at the edge of the grid."""
        name = ",".join(text for text in cell.name if key_of(text) in self.varied) or "the adapter"
        if cell.chosen is None or cell.result is None or cell.result.value is None:
            return (
                f"tuned {name}: every value of {', '.join(self.keys)} diverged, so that it is left out of the comparison; "
                "try smaller ones"
            )
        metric = METRICS[cell.result.metric]
        seeds = f"{cell.seeds} seed{'' if cell.seeds == 1 else 's'}"
        text = f"tuned {name}: {','.join(cell.chosen)} (validation {metric.label} {cell.result.value:.3f} over {seeds})"
        wider = [f"{key}={value:g}" for key, value in self.beyond(cell.chosen).items()]
        return text + (f", at the edge of its grid: widen it, as with {' and '.join(wider)}" if wider else "")

    def beyond(self, chosen: Overrides) -> dict[str, float]:
        """{tuned key: value by which to widen its grid} of the keys whose best value lies at the edge."""
        found: dict[str, float] = {}
        for key in self.keys:
            values = [_number(text) for value in self.grid for text in value if key_of(text) == key]
            (best,) = (_number(text) for text in chosen if key_of(text) == key)
            if isinstance(best, float) and all(isinstance(value, float) for value in values) and len(set(values)) > 1:
                wider = beyond([value for value in values if isinstance(value, float)], best)
                found |= {} if wider is None else {key: wider}
        return found


def check_grid(jobs: Sequence[Sequence[str]], keys: Sequence[str]) -> None:
    """Refuse a tuned key with a single value.

    Raises:
        UserError: the first one.
    """
    for key in keys:
        values = dict.fromkeys(text.partition("=")[2] for job in jobs for text in job if key_of(text) == key)
        if len({_number(value) for value in values}) < 2:
            has = f"the one value {next(iter(values))}" if values else "no value of its own"
            raise UserError(
                f"tune=[{key}] needs several values to choose from, and the sweep has {has}: write {key}=A,B,C, or leave "
                "tune out."
            )


def _cells(jobs: Sequence[Sequence[str]], keys: Sequence[str]) -> list[Cell]:
    """The cells of a sweep; of two texts for one number, the first stands for it. Smaller values come first."""
    cells: dict[Overrides, Cell] = {}
    texts: dict[tuple[Any, ...], Overrides] = {}
    for job in jobs:
        value = tuple(text for text in job if key_of(text) in keys)
        name = tuple(text for text in job if key_of(text) not in (*keys, "seed"))
        if texts.setdefault(tuple(map(_number, value)), value) == value:
            cells.setdefault(name, Cell(name)).compared.setdefault(value, []).append(tuple(job))
    for cell in cells.values():
        ordered = sorted(cell.compared, key=lambda value: [_sorted_by(_number(text)) for text in value])
        cell.compared = {value: cell.compared[value] for value in ordered}
    return list(cells.values())


def _values(
    tried: Mapping[Overrides, Sequence[Result | None]], among: Sequence[Overrides]
) -> tuple[dict[Overrides, list[float | None]], float]:
    """({value: its results}, the sign of the metric)."""
    found = {value: [None if one is None else one.value for one in tried[value]] for value in among}
    metrics = [one.metric for results in tried.values() for one in results if one and one.value is not None]
    return found, METRICS[metrics[0]].sign if metrics else 1.0


def _number(text: str) -> float | str:
    value = text.partition("=")[2] or text
    try:
        return float(value)
    except ValueError:
        return text


def _sorted_by(value: float | str) -> tuple[bool, float, str]:
    return (False, value, "") if isinstance(value, float) else (True, 0.0, value)


def _seed_of(job: Sequence[str], seed: int) -> int:
    given = [text.partition("=")[2] for text in job if key_of(text) == "seed"]
    return int(given[0]) if given else seed
