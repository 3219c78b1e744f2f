"""One verdict over several studies of a sweep."""

import math

import numpy as np
import pytest

from foura.analysis.tasks import Task, overall
from foura.report.collect import load_sweep
from foura.report.overview import over_tasks, overview_figure, overview_note
from foura.report.page import report
from foura.report.study import Study, studies
from tests.helpers.sweeps import grid, study_of, synthetic


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


def by_loss(title: str, **losses: tuple[float, ...]) -> Study:
    """A study that is judged by the test loss; losses: of each adapter, by seed."""
    rows = [
        {"adapter": adapter, "seed": seed, "test": 1 - loss, "backbone.family": "another"}
        for adapter, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    study = study_of(rows)
    study.title = title
    return study


def test_a_smaller_loss_is_better_in_shares_of_the_baselines() -> None:
    """2 % of 0.5 are 0.01: a loss of 0.4 is ten margins better. Only foura has a fourth seed, which makes no pair."""
    found = [by_loss(title, lora=(0.5,) * 3, foura=(0.4,) * 4) for title in ("one", "two")]
    (row,) = over_tasks(found).to_dict("records")
    assert row["mean"] == row["low"] == row["high"] == pytest.approx(10.0)
    assert (row["verdict"], row["improvement"], row["tasks"], row["pairs"]) == ("better", 1.0, 2, 6)


def test_a_value_that_is_not_finite_makes_no_pair() -> None:
    found = [by_loss(title, lora=(0.5,) * 4, foura=(0.4, 0.4, math.inf, 0.4)) for title in ("one", "two")]
    (row,) = over_tasks(found).to_dict("records")
    assert row["mean"] == pytest.approx(10.0) and row["verdict"] == "better" and row["pairs"] == 6


def test_the_rows_share_the_level_of_their_table() -> None:
    own, base = (0.48, 0.49, 0.47, 0.52), (0.5, 0.51, 0.49, 0.5)
    found = [by_loss(title, lora=base, foura=own, dora=base) for title in ("one", "two")]
    table = over_tasks(found).set_index("adapter")
    task = Task(-np.array(own), -np.array(base), 0.02 * 0.5)
    expected = overall([task, task], tests=2)
    assert table.loc["foura", ["low", "high"]].tolist() == pytest.approx([expected.low, expected.high])
    assert table.loc["foura", "low"] < overall([task, task]).low


def test_an_adapter_that_the_first_study_lacks_has_a_row_of_the_others() -> None:
    first, *others = (by_loss(title, lora=(0.5,) * 3, foura=(0.4,) * 3) for title in ("one", "two", "three"))
    both = [by_loss(study.title, lora=(0.5,) * 3, foura=(0.4,) * 3, dora=(0.6,) * 3) for study in others]
    table = over_tasks([first, *both])
    assert table[["adapter", "tasks"]].to_numpy().tolist() == [["foura", 3], ["dora", 2]]
    assert table["mean"].tolist() == pytest.approx([10.0, -10.0])
    assert overview_figure(table, [first, *both]) is not None


@pytest.mark.slow
def test_a_study_with_another_baseline_or_no_margin_is_left_out_and_named(tmp_path) -> None:
    for dataset in ("digits", "letters", "shapes"):
        synthetic(tmp_path, "s", grid(0.02), dataset=dataset)
    found = studies(load_sweep(tmp_path, "s").runs, [])
    object.__setattr__(found[1].quality, "margin", None)
    found[2].baseline = "foura"
    assert over_tasks(found).empty
    assert "Without vit on letters, vit on shapes: another baseline, or no margin" in overview_note(found)
