"""Simulated differences over seeds, and the tables of docs/statistics.md that the simulations are compared with."""

from collections.abc import Callable

import numpy as np

from foura.analysis.items import interval as interval_over_items
from foura.analysis.statistics import LEVEL, interval
from tests.conftest import ROOT

SEEDS = (3, 5, 10, 20)
TABLE = 9  # comparisons: three adapters in three conditions
ITEMS = 40  # of a small test set
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
# differences of mean zero; the names are the rows of the table in docs/statistics.md
DIFFERENCES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails: Student's t with 3 degrees of freedom": lambda rng, shape: rng.standard_t(3, size=shape),
    "both adapters skewed alike: difference of two log-normals": lambda rng, shape: (
        rng.lognormal(size=shape) - rng.lognormal(size=shape)
    ),
    "counts: accuracies on 40 test items": lambda rng, shape: (
        (rng.binomial(ITEMS, 0.9, shape) - rng.binomial(ITEMS, 0.9, shape)) / ITEMS
    ),
    "skewed: gamma with shape 4 (skewness 1)": lambda rng, shape: rng.gamma(4, size=shape) - 4,
    "strongly skewed: exponential (skewness 2)": lambda rng, shape: rng.exponential(size=shape) - 1,
    "one seed in 20 off by 8 standard deviations": lambda rng, shape: (
        rng.normal(size=shape) + 8 * (rng.random(shape) < 0.05) - 0.4
    ),
}
HOLDS = tuple(DIFFERENCES)[:3]  # where the interval covers 93 to 98 %
# values of one adapter over seeds, for tables with a shared baseline
VALUES: dict[str, Draw] = {
    "normal": DIFFERENCES["normal"],
    "heavy tails: Student's t with 3 degrees of freedom": DIFFERENCES[HOLDS[1]],
    "strongly skewed: exponential": lambda rng, shape: rng.exponential(size=shape),
    "counts: accuracies on 40 test items": lambda rng, shape: rng.binomial(ITEMS, 0.9, shape) / ITEMS,
}


def item_of(name: str) -> float:
    """The step of the values of a distribution."""
    return 1 / ITEMS if name.startswith("counts") else 0.0


def covered(name: str, seeds: int, samples: int) -> float:
    """Share of intervals of level LEVEL that contain the true mean, in percent."""
    rng = np.random.default_rng(seeds)
    _, low, high = interval(DIFFERENCES[name](rng, (samples, seeds)), item=item_of(name))
    return 100 * float(((low <= 0) & (high >= 0)).mean())


def false_verdicts(name: str, seeds: int, samples: int) -> tuple[float, float]:
    """Percent of tables of nine equal comparisons with (any "better", any verdict), three sharing each baseline."""
    rng = np.random.default_rng(seeds)
    better, any_verdict = np.zeros(samples, bool), np.zeros(samples, bool)
    for _ in range(3):
        baseline = VALUES[name](rng, (samples, seeds))
        for _ in range(3):
            differences = VALUES[name](rng, (samples, seeds)) - baseline
            _, low, high = interval(differences, LEVEL / TABLE, item_of(name))
            better |= low > 0
            any_verdict |= (low > 0) | (high < 0)
    return 100 * float(better.mean()), 100 * float(any_verdict.mean())


def documented(title: str) -> dict[str, list[float]]:
    """The numbers of a table of docs/statistics.md by the first cell of each row; `title` is the first cell of its head."""
    lines = (ROOT / "docs/statistics.md").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {title} |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = [float(cell) for cell in cells]
    return rows


# standard deviations of the effects of (seed, item, both) on a difference of losses, and test items
LOSSES = {
    "losses on 40 items, seeds vary most": (1.0, 0.5, 1.0, 40),
    "losses on 100 items, items vary most": (0.1, 1.0, 1.0, 100),
    "losses on 400 items, both together vary most": (0.05, 1.0, 3.0, 400),
}
# of (seed, item) on the log odds of a right answer, and test items
ACCURACIES = {"accuracies on 100 items": (0.1, 0.5, 100), "accuracies on 400 items": (0.3, 0.3, 400)}


def covered_with_items(name: str, seeds: int, samples: int) -> float:
    """Share of intervals over seeds and items that contain the true difference, 0, in percent."""
    rng, hits = np.random.default_rng(seeds), 0
    for _ in range(samples):
        if name in LOSSES:
            by_seed, by_item, by_both, items = LOSSES[name]
            D = rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, by_item, (1, items))
            D = D + rng.normal(0, by_both, (seeds, items))
        else:
            by_seed, by_item, items = ACCURACIES[name]
            easy, liking = rng.normal(1.5, 1.5, items), rng.normal(0, by_item, items)
            odds = [easy + side * liking + rng.normal(0, by_seed, (seeds, 1)) for side in (1, -1)]
            right = [rng.random((seeds, items)) < 1 / (1 + np.exp(-one)) for one in odds]
            D = right[0].astype(float) - right[1]
        low, high = interval_over_items(D, LEVEL)
        hits += low <= 0 <= high
    return 100 * hits / samples
