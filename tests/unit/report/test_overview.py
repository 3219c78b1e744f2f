"""One verdict over several studies of a sweep."""

import numpy as np
import pytest

from foura.report.collect import load_sweep
from foura.report.overview import over_tasks, overview_note
from foura.report.page import report
from foura.report.study import studies
from tests.helpers.sweeps import grid, synthetic


def test_a_sweep_over_datasets_has_one_verdict_over_all(tmp_path) -> None:
    """foura is better by 0.02, two margins of accuracy, on both."""
    for dataset in ("digits", "shapes"):
        synthetic(tmp_path, "s", grid(0.02), dataset=dataset)
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert "Over all tasks: of 2 comparisons with lora: 2 better." in page
    assert page.index("All tasks together") < page.index("vit on digits") < page.index("vit on shapes")
    assert (tmp_path / "sweeps/s/report/tasks.csv").exists() and (tmp_path / "sweeps/s/report/tasks.svg").exists()
    sweep = load_sweep(tmp_path, "s")
    table = over_tasks(studies(sweep.runs, sweep.tune))
    assert table["rank"].tolist() == [4, 16] and table["tasks"].tolist() == [2, 2]
    assert np.allclose(table["mean"], 2.0, atol=0.3)


@pytest.mark.slow
def test_a_study_with_another_baseline_or_no_margin_is_left_out_and_named(tmp_path) -> None:
    for dataset in ("digits", "letters", "shapes"):
        synthetic(tmp_path, "s", grid(0.02), dataset=dataset)
    found = studies(load_sweep(tmp_path, "s").runs, [])
    object.__setattr__(found[1].quality, "margin", None)
    found[2].baseline = "foura"
    assert over_tasks(found).empty
    assert "Without vit on letters, vit on shapes: another baseline, or no margin" in overview_note(found)
