"""The forest plot: which rows are drawn together, and on which axis."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from foura.report import forest
from foura.report.forest import _packed


@pytest.mark.parametrize(
    ("rows_of_an_adapter", "sizes"),
    [(2, [14, 6]), (5, [10, 10, 10, 10, 10]), (14, [14] * 10), (16, [14, 2] * 10)],
)
def test_an_adapters_rows_are_together_in_as_few_panels_as_can_be(rows_of_an_adapter, sizes) -> None:
    """Ten adapters, by condition first, as comparisons are."""
    adapters = [f"a{number}" for _ in range(rows_of_an_adapter) for number in range(10)]
    parts = _packed(pd.DataFrame({"adapter": adapters, "row": np.arange(len(adapters))}))
    assert [len(part) for part in parts] == sizes
    assert sorted(row for part in parts for row in part["row"]) == list(range(len(adapters)))
    for part in parts:
        changes = (part["adapter"] != part["adapter"].shift()).sum()
        assert changes == part["adapter"].nunique()


@pytest.mark.parametrize("margin", [0.02, 0.5, np.nan])
def test_the_panels_of_a_measure_share_an_axis_that_holds_every_interval(margin, monkeypatch) -> None:
    adapters = [f"a{number}" for number in range(20)]
    table = pd.DataFrame({"adapter": adapters, "difference": np.linspace(-0.3, 0.1, 20), "margin": margin})
    table = table.assign(low=table["difference"] - 0.1, high=table["difference"] + 0.1, verdict="undecided")
    table.loc[19, ["low", "high"]] = [-np.inf, np.inf]  # of one seed
    drawn = []
    monkeypatch.setattr(forest, "draw", lambda rows, *others: drawn.append(others[-1]) or forest.Panel("", b"", ""))
    study = SimpleNamespace(baseline="lora", adapters=adapters, conditions=[])
    measure = SimpleNamespace(label="accuracy", more_is_better=True)
    assert len(forest.forest(study, table, measure)) == 2
    (left, right), other = drawn
    assert (left, right) == other
    ends = [-0.4, 0.1 + 0.1 - 0.4 / 19, *([] if np.isnan(margin) else [-margin, margin])]
    assert left < min(ends) and max(ends) < right
    assert right - left < 1.2 * (max(ends) - min(ends))
