"""Every number of a report is of one adapter in one condition, against values worked out by hand."""

import math

import pandas as pd
import pytest

from foura.report import compare, plots, updates
from foura.report.page import _spread_over_conditions
from tests.helpers.sweeps import study_of


def two_rates():
    """lora and foura; at lr 0.001 ranks 4, 8, 16 with 0.10, 0.15, 0.20 (foura: 0.21), at lr 0.01 rank 16 with 0.40."""
    for adapter in ("lora", "foura"):
        for seed in range(3):
            for rank, test in ((4, 0.10), (8, 0.15), (16, 0.20 + (0.01 if adapter == "foura" else 0.0))):
                yield {"adapter": adapter, "seed": seed, "rank": rank, "adapter.lr": 0.001, "test": test + 0.001 * seed}
            yield {"adapter": adapter, "seed": seed, "rank": 16, "adapter.lr": 0.01, "test": 0.40 + 0.001 * seed}


def test_a_slope_is_that_of_one_condition() -> None:
    """0.05 for lora (pooled over rates it would be 0.10), 0.055 for foura; one rank at lr 0.01 makes no slope."""
    study = study_of(two_rates())
    assert study.conditions == ["rank", "adapter.lr"] and study.x == "rank" and study.facets == ["adapter.lr"]
    found = compare.slopes(study, study.quality)
    assert found[["adapter", "adapter.lr"]].to_numpy().tolist() == [["lora", 0.001], ["foura", 0.001]]
    assert found["per doubling"].tolist() == pytest.approx([0.05, 0.055])


def test_two_rates_have_two_slopes() -> None:
    rows = [row for row in two_rates() if row["adapter"] == "lora"]
    rows += [{**row, "rank": 4, "test": 0.20 + 0.001 * row["seed"]} for row in rows if row["adapter.lr"] == 0.01]
    found = compare.slopes(study_of(rows), study_of(rows).quality)
    assert dict(zip(found["adapter.lr"], found["per doubling"], strict=True)) == pytest.approx(
        {0.001: 0.05, 0.01: 0.10}
    )


def test_means_and_comparisons_are_of_one_condition() -> None:
    study = study_of(two_rates())
    means = compare.summary(study).set_index(["adapter", "rank", "adapter.lr"])["test accuracy"]
    assert means[("lora", 16, 0.001)] == pytest.approx(0.201) and means[("lora", 16, 0.01)] == pytest.approx(0.401)
    bounds = compare.intervals(study, study.quality).set_index(["adapter", "rank", "adapter.lr"])["mean"]
    assert bounds.to_dict() == pytest.approx(means.to_dict())
    table = compare.comparisons(study, study.quality).set_index(["rank", "adapter.lr"])["difference"]
    expected = {(4, 0.001): 0.0, (8, 0.001): 0.0, (16, 0.001): 0.01, (16, 0.01): 0.0}
    assert table.to_dict() == pytest.approx(expected, abs=1e-12)


def test_a_mean_of_runs_is_the_mean_with_the_spread_of_a_sample() -> None:
    """0.1, 0.1 and 0.4: mean 0.2 and not the middle 0.1, standard deviation √(0.06 / 2)."""
    rows = [{"adapter": "lora", "seed": seed, "rank": 4, "test": test} for seed, test in enumerate((0.1, 0.1, 0.4))]
    study = study_of(rows)
    (row,) = compare.summary(study).to_dict("records")
    assert row["test accuracy"] == pytest.approx(0.2) and row["± test accuracy"] == pytest.approx(math.sqrt(0.03))
    assert compare.intervals(study, study.quality)["mean"].tolist() == pytest.approx([0.2])


def test_a_slope_is_over_the_seeds_that_have_every_rank() -> None:
    """Seeds 0 and 1 rise by 0.1 and 0.2 for each doubling; seed 2 lacks rank 8."""
    tests = {0: {4: 0.1, 8: 0.2, 16: 0.3}, 1: {4: 0.1, 8: 0.3, 16: 0.5}, 2: {4: 0.0, 16: 0.9}}
    rows = [{"adapter": "lora", "seed": s, "rank": r, "test": test} for s in tests for r, test in tests[s].items()]
    (row,) = compare.slopes(study_of(rows), study_of(rows).quality).to_dict("records")
    assert row["per doubling"] == pytest.approx(0.15) and row["seeds"] == 2


def test_figures_have_a_panel_for_each_condition() -> None:
    study = study_of(two_rates())
    means = plots.by_measure(study, study.quality)
    assert [panel.alt for panel in means] == [f"test accuracy (lr {lr}) against rank" for lr in ("0.001", "0.01")]
    history = pd.DataFrame([{"run_id": one, "epoch": 1, "train": 0.9, "val": 0.8} for one in study.finished["run_id"]])
    where = [f"rank {rank}, lr {lr}" for rank, lr in ((4, "0.001"), (8, "0.001"), (16, "0.001"), (16, "0.01"))]
    assert [panel.alt for panel in plots.curves(study, history, "accuracy")] == [
        f"accuracy ({one}) by epoch" for one in where
    ]
    values = [{"run_id": one, "layer": "a", "index": 1, "value": 1.0} for one in study.finished["run_id"]]
    assert [panel.alt for panel in updates.spectra(study, pd.DataFrame(values))] == [
        f"singular values of ΔW ({one})" for one in where
    ]


def test_quality_against_cost_is_of_one_rate_over_ranks() -> None:
    """The runs at lr 0.01, better by 0.2, beat none of those at 0.001: a panel for each, here one with enough points."""
    rows = [{**row, "cost": 100.0 * row["rank"]} for row in two_rates()]
    study = study_of(rows)
    panels = plots.pareto(study, compare.summary(study))
    assert [panel.alt for panel in panels] == [
        f"test accuracy (lr 0.001) against {cost}" for cost in ("parameters", "step, ms")
    ]
    table = pd.DataFrame({"cost": [1, 1, 2, 3, 4], "quality": [0.5, 0.6, 0.55, 0.7, 0.7]})
    assert plots.front(table, "cost", "quality", True) == [(1, 0.6), (3, 0.7)]
    assert plots.front(table, "cost", "quality", False) == [(1, 0.5)]


def test_without_a_number_to_plot_against_there_is_a_row_per_condition() -> None:
    rows = [{"adapter": a, "seed": s, "dataset.style": style, "test": 0.5} for a in ("lora", "foura") for s in range(3)
            for style in ("fire", "ice")]  # fmt: skip
    study = study_of(rows)
    assert study.x is None and study.facets == ["dataset.style"]
    assert compare.slopes(study, study.quality).empty
    (panel,) = plots.by_measure(study, study.quality)
    assert all(name in panel.svg.decode() for name in ("lora, style fire", "foura, style ice"))


def test_what_did_not_finish_is_counted_and_not_averaged() -> None:
    study = study_of(two_rates())
    study.runs.loc[study.runs["seed"] == 2, "state"] = "diverged"
    study.finished = study.runs[study.runs["state"] == "finished"]
    table = compare.summary(study).set_index(["adapter", "rank", "adapter.lr"])
    assert table.loc[("lora", 4, 0.001), "diverged"] == 1 and table.loc[("lora", 4, 0.001), "seeds"] == 2
    assert table.loc[("lora", 4, 0.001), "test accuracy"] == pytest.approx(0.1005)
    assert compare.comparisons(study, study.quality)["verdict"].tolist() == ["undecided"] * 4


def test_layers_are_read_of_every_condition_however_many_runs_there_are() -> None:
    rows = [{"adapter": "lora", "seed": s, "rank": 2**r, "dataset.limit": n, "test": 0.5}
            for r in range(8) for n in range(1, 11) for s in range(7)]  # fmt: skip
    study = study_of(rows)
    some = study.finished[study.finished["run_id"].isin(_spread_over_conditions(study))]
    assert len(some) == len(some[["rank", "dataset.limit"]].drop_duplicates()) == 80


def test_margins_are_the_metrics_own_or_as_declared() -> None:
    """Accuracy ± 0.01, and its gap; the loss ± 2 % of lora's 0.9, 0.899, 0.898 at rank 4, and of its 0.8 … at 16."""
    study, declared = study_of(two_rates()), study_of(two_rates(), {"acc": 0.5, "loss": 0.125})
    loss = next(measure for measure in study.extra if measure.column == "test/loss")
    assert compare.comparisons(study, study.quality)["margin"].tolist() == [0.01] * 4
    assert compare.comparisons(study, study.gap)["margin"].tolist() == [0.01] * 4
    assert compare.comparisons(study, loss)["margin"].iloc[0] == pytest.approx(0.02 * 0.899)
    assert compare.comparisons(study, loss)["margin"].iloc[2] == pytest.approx(0.02 * 0.799)  # foura has 0.789
    assert compare.comparisons(declared, declared.quality)["margin"].tolist() == [0.5] * 4
    loss = next(measure for measure in declared.extra if measure.column == "test/loss")
    assert compare.comparisons(declared, loss)["margin"].tolist() == [0.125] * 4


def test_accuracy_has_steps_of_one_item_and_loss_has_none() -> None:
    rows = [{**row, "items": 40} for row in two_rates()]
    study = study_of(rows)
    loss = next(measure for measure in study.extra if measure.column == "test/loss")
    assert study.quality.item(study.finished) == study.gap.item(study.finished) == 1 / 40
    assert loss.item(study.finished) == 0.0
    assert math.isnan(study_of(two_rates()).quality.item(study_of(two_rates()).finished))
    table = compare.comparisons(study, study.quality)
    assert table["verdict"].tolist() == ["undecided"] * 4  # ± 0.01 and differences of 0.01 are less than an item


def test_a_gate_map_of_one_colour_is_a_sentence() -> None:
    study = study_of(two_rates())
    rows = [{"run_id": one, "layer": name, "rank": 4, "effective_rank": 3.0, "gate_std": 0.1, "open_std": 0.2}
            for one in study.finished["run_id"] for name in ("a", "b")]  # fmt: skip
    panels, said = updates.gate_maps(study, pd.DataFrame(rows))
    assert not panels and said[0].startswith("Every gate of every layer has 75.0% of its ranks open")
    assert "differs between inputs by 5.0% of the rank" in said[1] and len(said) == 2
    older = pd.DataFrame(rows).drop(columns="open_std")  # layers.csv of 0.1.0
    assert updates.gate_maps(study, older)[1] == said[:1]
    rows[0] |= {"effective_rank": 1.0, "open_std": 1.4}
    panels, said = updates.gate_maps(study, pd.DataFrame(rows))
    assert [panel.alt.split(",")[0] for panel in panels] == ["open ranks by layer", "spread of open ranks over inputs"]
    assert not said
    shares = (updates.of_gates(study, pd.DataFrame(rows), name) for name in ("effective_rank", "open_std"))
    found = [table.loc["a", ("lora", 4, 0.001)] for table in shares]
    assert found == pytest.approx([(0.25 + 2 * 0.75) / 3, (1.4 + 2 * 0.2) / 4 / 3])


def test_open_ranks_by_denoising_step() -> None:
    study = study_of(two_rates())
    rows = [
        {"run_id": one, "step": step, "a": 4.0 - step, "b": 2.0}
        for one in study.finished["run_id"]
        for step in range(3)
    ]
    panels = updates.by_denoising_step(study, pd.DataFrame(rows))
    assert len(panels) == 4 and all(panel.alt.startswith("open ranks by denoising step") for panel in panels)
    assert updates.by_denoising_step(study, pd.DataFrame()) == []
