"""Which runs a study compares, by which measures and in which direction, against tables made by hand."""

from typing import Any

import pandas as pd
import pytest

from foura.analysis.items import interval as over_items
from foura.report import compare, verdicts
from foura.report.study import studies, with_layers
from tests.helpers.sweeps import result, runs


def test_a_tuned_rate_is_picked_on_validation_data_for_each_adapter() -> None:
    """lora: 0.01 has the better test accuracy and 0.001 the better validation accuracy; foura: the other way round."""
    table = runs(
        *(("lora", seed, 0.001, "finished", result(test=0.5, val=0.9)) for seed in range(3)),
        *(("lora", seed, 0.01, "finished", result(test=0.8, val=0.6)) for seed in range(3)),
        *(("foura", seed, 0.001, "finished", result(test=0.9, val=0.2)) for seed in range(3)),
        *(("foura", seed, 0.01, "finished", result(test=0.7, val=0.4)) for seed in range(3)),
    )
    (study,) = studies(table, ["adapter.lr"])
    assert dict(zip(study.tuned["adapter"], study.tuned["adapter.lr"], strict=True)) == {"lora": 0.001, "foura": 0.01}
    (row,) = compare.comparisons(study, study.quality).to_dict("records")
    assert row["difference"] == pytest.approx(0.7 - 0.5)
    assert len(study.finished) == 6


def tuning(*rows) -> pd.DataFrame:
    """Tuning runs of lora at seeds from 1000. A row: lr, state, and the validation accuracies, one for each seed."""
    found = [("lora", 1000 + n, lr, state, result(0.0, val)) for lr, state, *vals in rows for n, val in enumerate(vals)]
    return runs(*found).assign(**{"param:evaluation.test": "False"})


def compared(*rates: float, **columns: str) -> pd.DataFrame:
    return runs(*(("lora", s, lr, "finished", result(0.5, 0.5)) for lr in rates for s in range(3))).assign(**columns)


def test_a_loss_is_tuned_to_be_small() -> None:
    """Validation losses of 0.1 and 0.6."""
    rows = [("lora", s, lr, "finished", result(0.5, val)) for lr, val in ((0.001, 0.9), (0.01, 0.4)) for s in range(3)]
    (study,) = studies(by_loss(*rows), ["adapter.lr"])
    assert study.tuned["adapter.lr"].tolist() == [0.001]


def test_a_rate_is_chosen_among_those_that_were_compared() -> None:
    """0.1 was tried after the comparison, and is best."""
    by = tuning((0.001, "finished", 0.5, 0.5), (0.01, "finished", 0.6, 0.6), (0.1, "finished", 0.9, 0.9))
    (study,) = studies(compared(0.001, 0.01), ["adapter.lr"], tuning=by)
    assert study.tuned["adapter.lr"].tolist() == [0.01] and len(study.finished) == 3


def test_a_rate_is_chosen_by_the_tuning_runs_of_its_own_data() -> None:
    """digits at 0.001, letters at 0.01; both together would choose the latter."""
    of_digits = tuning((0.001, "finished", 0.6, 0.6), (0.01, "finished", 0.5, 0.5))
    of_letters = tuning((0.001, "finished", 0.1, 0.1), (0.01, "finished", 0.9, 0.9)).assign(dataset="letters")
    both = pd.concat([compared(0.001, 0.01), compared(0.001, 0.01, dataset="letters")], ignore_index=True)
    found = studies(both, ["adapter.lr"], tuning=pd.concat([of_digits, of_letters], ignore_index=True))
    chosen = {study.title: study.tuned["adapter.lr"].tolist() for study in found}
    assert chosen == {"vit on digits": [0.001], "vit on letters": [0.01]}


def test_an_adapter_is_left_out_where_every_tuning_run_diverged_and_no_sooner() -> None:
    some = tuning((0.001, "finished", 0.6), (0.01, "diverged", 0.0))
    (study,) = studies(compared(0.001), ["adapter.lr"], tuning=some)
    assert study.lost.empty and study.tuned["adapter.lr"].tolist() == [0.001]
    every = tuning((0.001, "diverged", 0.0), (0.01, "diverged", 0.0)).assign(adapter="oft")
    (study,) = studies(compared(0.001), ["adapter.lr"], tuning=pd.concat([some, every], ignore_index=True))
    assert study.lost["adapter"].tolist() == ["oft"]


def test_a_rate_that_some_seeds_diverged_at_cannot_win() -> None:
    """0.01 has the best mean, of the one seed that finished; the diverged ones' numbers up to then count nowhere."""
    table = runs(
        *(("lora", seed, 0.001, "finished", result(test=0.5, val=0.6)) for seed in range(3)),
        ("lora", 0, 0.01, "finished", result(test=0.9, val=0.9)),
        ("lora", 1, 0.01, "diverged", result(test=0.9, val=0.9)),
        ("lora", 2, 0.01, "diverged", result(test=0.9, val=0.9)),
    )
    (study,) = studies(table, ["adapter.lr"])
    assert study.tuned["adapter.lr"].tolist() == [0.001] and study.tuned["did not finish"].tolist() == [2]


def test_diverged_and_interrupted_runs_are_counted_and_compared_with_nothing() -> None:
    rows = [("lora", seed, 0.001, "finished", result(0.5, 0.5)) for seed in range(4)]
    rows += [("foura", seed, 0.001, "finished", result(0.6, 0.5)) for seed in range(2)]
    rows += [("foura", 2, 0.001, "diverged", result(0.0, 0.0)), ("foura", 3, 0.001, "interrupted", result(0.0, 0.0))]
    (study,) = studies(runs(*rows), [])
    (row,) = compare.comparisons(study, study.quality).to_dict("records")
    assert row["seeds"] == 2 and row["difference"] == pytest.approx(0.1) and row["unpaired"] == "2, 3"
    means = compare.summary(study).set_index("adapter")
    assert means.loc["foura", "test accuracy"] == pytest.approx(0.6) and means.loc["foura", "seeds"] == 2
    assert means.loc["foura", "diverged"] == means.loc["foura", "interrupted"] == 1


def test_pairs_are_of_one_seed() -> None:
    """Levels of 0.1 to 0.9 by seed, foura always 0.02 better: sure by pairs, and lost in the levels without them."""
    levels = {seed: 0.1 + 0.2 * seed for seed in range(5)}
    rows = [("lora", seed, 0.001, "finished", result(level, 0.5)) for seed, level in levels.items()]
    noise = [0.0001, -0.0001, 0.0, 0.0002, -0.0002]
    rows += [("foura", 4 - at, 0.001, "finished", result(levels[4 - at] + 0.02 + noise[at], 0.5)) for at in range(5)]
    (study,) = studies(runs(*rows).assign(test_items=100_000), [])
    (row,) = compare.comparisons(study, study.quality).to_dict("records")
    assert row["verdict"] == "better" and row["difference"] == pytest.approx(0.02)


@pytest.mark.parametrize(("gap", "verdict"), [(0.3, "worse"), (0.1, "better")])
def test_a_larger_gap_is_worse(gap, verdict) -> None:
    """At the last epoch, where a run overfits most, and not at the selected one (whose sign is turned here)."""
    noise = [0.001, 0.0, -0.001, 0.002, -0.002]
    rows = [("lora", seed, 0.001, "finished", result(0.5, 0.5, gap=0.2)) for seed in range(5)]
    rows += [("foura", seed, 0.001, "finished", result(0.5, 0.5, gap=gap + noise[seed])) for seed in range(5)]
    (study,) = studies(runs(*rows).assign(validation_items=100_000), [])
    (row,) = compare.comparisons(study, study.gap).to_dict("records")
    assert row["verdict"] == verdict and row["difference"] == pytest.approx(gap - 0.2)


def test_a_smaller_loss_is_better() -> None:
    noise = [0.001, 0.0, -0.001, 0.002, -0.002]
    rows = [("lora", seed, 0.001, "finished", result(0.5, 0.5, loss=1.0)) for seed in range(5)]
    rows += [("foura", seed, 0.001, "finished", result(0.5, 0.5, loss=0.8 + noise[seed])) for seed in range(5)]
    (study,) = studies(runs(*rows), [])
    (loss,) = (measure for measure in study.measures if measure.column == "test/loss")
    (row,) = compare.comparisons(study, loss).to_dict("records")
    assert row["verdict"] == "better" and row["difference"] == pytest.approx(-0.2)


def test_lora_is_the_baseline_wherever_it_stands() -> None:
    names = ("foura", "foura_dct", "lora")
    rows = [(name, seed, 0.001, "finished", result(0.5, 0.5)) for name in names for seed in range(3)]
    (study,) = studies(runs(*rows), [])
    assert study.baseline == "lora" and study.adapters == ["lora", "foura", "foura_dct"]
    (study,) = studies(runs(*(row for row in rows if row[0] != "lora")), [])
    assert study.baseline == "foura_dct"


def test_what_training_on_costs_is_the_last_loss_less_the_best() -> None:
    rows = [("lora", seed, 0.001, "finished", {**result(0.5, 0.6), "final/loss": 0.7}) for seed in range(3)]
    (study,) = studies(runs(*rows), [])  # the best is 1 - 0.6
    assert compare.summary(study)["final − best val loss"].tolist() == pytest.approx([0.3])


def by_loss(*rows) -> pd.DataFrame:
    """Runs that are judged by their loss, those of a family that is not known."""
    return runs(*rows).assign(**{"param:backbone.family": "another"})


def test_the_margin_of_a_gap_in_loss_is_a_share_of_the_loss() -> None:
    """Validation losses of 0.4 and gaps of 0.1: 2 % of the former."""
    rows = [(name, seed, 0.001, "finished", result(0.5, 0.6)) for name in ("lora", "foura") for seed in range(3)]
    (study,) = studies(by_loss(*rows), [])
    assert study.gap.column == "final/gap_loss"
    assert compare.comparisons(study, study.gap)["margin"].tolist() == pytest.approx([0.008])


def test_an_item_is_that_of_the_smallest_split() -> None:
    rows = [("lora", seed, 0.001, "finished", result(0.5, 0.5)) for seed in range(3)]
    (study,) = studies(runs(*rows).assign(test_items=[40, 80, 60]), [])
    assert study.quality.item(study.finished) == 1 / 40


def with_items(*names: str) -> tuple[Any, pd.DataFrame]:
    """A study of four seeds and its test items: foura is right at one more of four than the others, in turns the third one
    and the fourth."""
    rows = [(name, seed, 0.001, "finished", result(0.5, 0.5)) for name in names for seed in range(4)]
    (study,) = studies(runs(*rows), [])
    study.finished.loc[study.finished["adapter"] == "foura", "test/acc"] = 0.75
    parts = []
    for _, run in study.finished.iterrows():
        right = [1.0, 1.0, 0.0, 0.0]
        if run["adapter"] == "foura":
            right[2 + run["seed"] % 2] = 1.0
        parts.append(pd.DataFrame({"acc": right}).assign(run_id=run["run_id"]))
    return study, pd.concat(parts)


MORE = [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]] * 2  # right at, by seed and item


def test_the_interval_over_items_is_of_pairs_by_seed_and_item() -> None:
    """Over seeds alone the difference is sure; over items it is not."""
    study, items = with_items("lora", "foura")
    (row,) = compare.comparisons(study, study.quality, items).to_dict("records")
    assert row["difference"] == pytest.approx(0.25)
    assert (row["items_low"], row["items_high"]) == pytest.approx(over_items(MORE, 0.05))
    assert row["items_low"] < 0 < row["items_high"]
    (row,) = compare.comparisons(study, study.quality, items.iloc[1:]).to_dict("records")
    assert pd.isna(row["items_low"])  # one run lacks an item: which pairs are formed is not known
    (row,) = compare.comparisons(study, study.gap, items).to_dict("records")
    assert pd.isna(row["items_low"])  # the gap is of validation data
    study.finished["param:dataset.split_seed"] = study.finished["seed"].astype(str)
    (row,) = compare.comparisons(study, study.quality, items).to_dict("records")
    assert pd.isna(row["items_low"])  # every seed has other test items


def test_the_interval_over_items_has_the_level_of_the_table() -> None:
    study, items = with_items("lora", "foura", "dora")
    table = compare.comparisons(study, study.quality, items).set_index("adapter")
    assert table.loc["foura", ["items_low", "items_high"]].tolist() == pytest.approx(over_items(MORE, 0.05 / 2))
    assert table.loc["dora", ["items_low", "items_high"]].tolist() == [0.0, 0.0]


def test_forgetting_that_some_runs_did_not_measure_splits_no_condition() -> None:
    """Runs of 0.1.0 did not measure it by default, and the same sweep goes on."""
    rows = [(name, seed, 0.001, "finished", result(0.5, 0.5)) for name in ("lora", "foura") for seed in range(3)]
    table = runs(*rows)
    table["param:evaluation.drift"] = ["False", "None", "None"] * 2
    (study,) = studies(table, [])
    assert study.conditions == []


def test_properties_of_an_update_are_means_over_the_layers_of_its_run() -> None:
    (study,) = studies(runs(*(("lora", seed, 0.001, "finished", result(0.5, 0.5)) for seed in range(2))), [])
    rows = [
        {"run_id": run, "stable_rank": value}
        for run, values in (("0", (1.0, 4.0, 4.0)), ("1", (2.0,)))
        for value in values
    ]
    with_layers(study, pd.DataFrame(rows))
    assert study.finished["layers/stable_rank"].tolist() == [3.0, 2.0]


def test_a_study_without_a_value_of_what_judges_it_has_no_comparison() -> None:
    """As of a store that was not told everything: accuracy and its gap cannot be compared, the loss can."""
    told = {"test/loss": 0.5, "best/loss": 0.5}
    (study,) = studies(runs(*((name, s, 0.001, "finished", told) for name in ("lora", "foura") for s in range(3))), [])
    assert [len(compare.comparisons(study, measure)) for measure in study.measures] == [0, 0, 1]
    assert compare.summary(study)["final − best val loss"].isna().all()


def test_a_baseline_that_never_finished_is_said() -> None:
    lost = [("lora", s, 0.001, "diverged", {}) for s in range(3)]
    (study,) = studies(runs(*lost, *(("foura", s, 0.001, "finished", result(0.5, 0.5)) for s in range(3))), [])
    said = verdicts.answer(compare.comparisons(study, study.quality), study.quality, study)
    assert said == ["test accuracy: lora, with which the others are compared, has no finished run."]


def test_a_study_has_the_measures_of_its_own_runs() -> None:
    """Of two data sets in one sweep the second alone has F1, and a key."""
    first, second = (
        runs(
            *(
                (name, s, 0.001, "finished", {**result(0.5, 0.5), **more})
                for name in ("lora", "foura")
                for s in range(3)
            )
        )
        for more in ({}, {"test/f1": 0.5, "cost/step_time_ms": 2.0})
    )
    second = second.assign(dataset="letters", **{"param:dataset.label_noise": "0.1"})
    found = {study.title: study for study in studies(pd.concat([first, second], ignore_index=True), [])}
    digits, letters = found["vit on digits"], found["vit on letters"]
    assert [measure.column for measure in digits.measures] == ["test/acc", "final/gap_acc", "test/loss"]
    assert [measure.column for measure in letters.measures] == ["test/acc", "final/gap_acc", "test/loss", "test/f1"]
    assert "step, ms" in compare.summary(letters) and "step, ms" not in compare.summary(digits)
