"""Simulated differences over seeds, and the tables of docs/statistics.md that the simulations are compared with."""

from collections.abc import Callable

import numpy as np

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
