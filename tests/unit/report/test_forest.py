"""The forest plot: which rows are drawn together."""

import numpy as np
import pandas as pd
import pytest

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
