"""Sweeps that were run in parts, with other keys, margins or data in each: nothing is mixed up, and nothing goes unsaid."""

import math

import numpy as np
import pandas as pd
import pytest

from foura.analysis.statistics import compare as compared_values
from foura.analysis.tasks import Task, overall
from foura.report import compare, verdicts
from foura.report.collect import load_sweep
from foura.report.overview import over_tasks, overview_lines
from foura.report.page import report
from foura.report.study import Study, missing, studies
from foura.tracking.store import open_store, parent_run
from tests.helpers.sweeps import grid, result, runs, study_of, synthetic

NOISE = (0.0, 0.001, -0.001, 0.002, -0.002)


def of(adapter: str, seeds=range(3), lr: float = 0.001, state: str = "finished", test: float = 0.5, val: float = 0.5):
    return [(adapter, seed, lr, state, result(test, val)) for seed in seeds]


def verdict_of(study: Study) -> dict[str, str]:
    return {row["adapter"]: row["verdict"] for row in compare.comparisons(study, study.quality).to_dict("records")}


@pytest.mark.parametrize("both", [False, True])
def test_a_value_that_the_store_cannot_hold_is_not_finite(tmp_path, both) -> None:
    """MLflow's databases hold the largest float in place of an infinity."""
    synthetic(tmp_path, "s", grid(0.3, ranks=(4,)))
    sweep = load_sweep(tmp_path, "s")
    client = open_store(tmp_path)[0]
    for row in sweep.runs.to_dict("records"):
        if row["seed"] == 2 and (both or row["adapter"] == "foura"):
            client.log_metric(row["run_id"], "test/loss", math.inf)
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    (study,) = studies(load_sweep(tmp_path, "s").runs, [])
    (loss,) = (measure for measure in study.measures if measure.column == "test/loss")
    assert math.isinf(study.finished["test/loss"].max())
    (row,) = compare.comparisons(study, loss, None).to_dict("records")
    assert row["verdict"] == "undecided" and "a run's value is not finite" in verdicts.reason(row)
    assert "e+30" not in page


def test_differences_are_not_rounded_by_an_infinite_value() -> None:
    found = compared_values({0: 0.5, 1: 0.4, 2: 0.4}, {0: math.inf, 1: 0.5, 2: 0.5}, False, margin=0.05)
    assert found.verdict == "undecided" and math.isinf(found.difference)


def test_a_tuned_value_that_wins_nowhere_can_be_none() -> None:
    by = runs(*of("lora", (1000,), val=0.4), *of("lora", (1000,), val=0.6)).assign(**{"param:evaluation.test": "False"})
    by["param:trainer.gradient_clip_val"] = ["None", "1.0"]
    table = runs(*of("lora"), *of("foura")).assign(**{"param:trainer.gradient_clip_val": "1.0"})
    every = pd.concat([by, by.assign(adapter="foura")], ignore_index=True)
    (study,) = studies(table, ["trainer.gradient_clip_val"], tuning=every)
    assert study.tuned["trainer.gradient_clip_val"].tolist() == ["1.0", "1.0"] and len(study.finished) == 6


def test_ranks_that_were_tuned_over_rates_of_their_own_are_told_apart() -> None:
    table = runs(*(one for lr in (1e-4, 1e-3, 1e-2, 1e-1) for name in ("lora", "foura") for one in of(name, lr=lr)))
    table["param:rank"] = table["param:adapter.lr"].map(lambda lr: "4" if float(lr) > 1e-3 else "64")
    table["param:optimizer.lr"] = table["param:adapter.lr"]  # as the config says
    (study,) = studies(table, ["adapter.lr"])
    assert study.conditions == ["rank"] and sorted(study.tuned["rank"]) == [4, 4, 64, 64]


def test_an_item_limits_the_verdict_over_tasks_too() -> None:
    """One item of 40 more at every seed and on both: each is undecided, and so are they together."""
    for better, verdict in ((0.0, "undecided"), (0.025, "undecided"), (0.1, "better")):
        rows = [
            {"adapter": name, "seed": seed, "test": 0.5 + (better if name == "foura" else 0.0), "items": 40}
            for name in ("lora", "foura")
            for seed in range(3)
        ]
        found = [study_of(rows), study_of(rows)]
        found[1].title = "two"
        assert verdict_of(found[0]) == {"foura": verdict}
        (row,) = over_tasks(found).to_dict("records")
        assert row["verdict"] == verdict and row["high"] - row["low"] >= 5.0  # two items, in margins of 0.01


def test_equal_shares_of_an_unknown_number_of_items_say_nothing() -> None:
    same = Task(np.full(3, 0.5), np.full(3, 0.5), 0.01, math.nan)
    assert overall([same, same]).verdict == "undecided"
    study = study_of([{"adapter": "lora", "seed": seed, "test": 0.5} for seed in range(3)])
    told = overview_lines(pd.DataFrame([{"adapter": "foura", "studies": 2, **vars(overall([same, same]))}]), [study])
    assert "of a share of an unknown number of items" in told[1] and "nan" not in told[1]


def test_an_adapter_that_never_finished_is_named_where_the_compared_runs_choose() -> None:
    table = runs(
        *of("lora"), *of("lora", lr=0.01), *of("foura", state="diverged"), *of("foura", lr=0.01, state="failed")
    )
    (study,) = studies(table, ["adapter.lr"])
    assert study.lost["adapter"].tolist() == ["foura"]
    assert "Left out, as every run to choose from diverged or failed: foura." in verdicts.tuned(study)


def test_a_baseline_without_a_finished_run_is_not_replaced() -> None:
    lost = of("lora", state="diverged") + of("lora", lr=0.01, state="diverged")
    table = runs(*lost, *of("foura"), *of("foura", lr=0.01), *of("head"), *of("head", lr=0.01))
    (study,) = studies(table, ["adapter.lr"])
    (line,) = verdicts.answer(compare.comparisons(study, study.quality), study.quality, study)
    assert study.baseline == "lora" and "lora, with which the others are compared, has no finished run" in line


def test_data_without_a_finished_run_is_named() -> None:
    table = pd.concat([runs(*of("lora")), runs(*of("lora", state="diverged")).assign(dataset="letters")])
    assert missing(table, studies(table, [])) == ["Nothing to compare for vit on letters: 3 diverged."]


def test_a_condition_without_the_baseline_is_named() -> None:
    rows = [{"adapter": name, "seed": seed, "rank": rank, "test": 0.5 + NOISE[seed]}
            for name, rank in (("lora", 4), ("foura", 4), ("foura", 64)) for seed in range(3)]  # fmt: skip
    assert verdicts.left_out(study_of(rows)) == ["Not compared, as lora has no finished run there: foura at rank 64."]


def test_a_baseline_is_compared_with_every_value_of_a_key_that_it_has_no_use_for() -> None:
    """lora has no gate: its runs are those that each form of foura's is compared with."""
    common = {"adapter.method": "lora", "adapter.gate": "none", "adapter.gate_form": "softmax"}
    rows = [{"adapter": "lora", "seed": seed, "test": 0.5, **common} for seed in range(3)]
    own = {**common, "adapter.method": "foura", "adapter.gate": "adaptive"}
    for form, test in (("entropy", 0.4), ("sigmoid", 0.6)):
        rows += [{"adapter": "foura", "seed": s, "test": test, **own, "adapter.gate_form": form} for s in range(3)]
    study = study_of(rows)
    table = compare.comparisons(study, study.quality)
    assert dict(zip(table["adapter.gate_form"], table["difference"], strict=True)) == pytest.approx(
        {"entropy": -0.1, "sigmoid": 0.1}
    )
    assert verdicts.left_out(study) == []
    limited = study_of([{**row, "dataset.limit": 10 if row["adapter"] == "lora" else row["test"]} for row in rows])
    assert compare.comparisons(limited, limited.quality).empty  # how much data there is, every adapter has a use for


def test_a_key_of_an_adapter_that_follows_the_seed_is_no_condition() -> None:
    """foura_random draws its basis with the seed; lora has none to draw, and one value of the key, or none."""
    for of_lora in ("0", "nan"):
        rows = [
            {"adapter": name, "seed": seed, "test": 0.5 + NOISE[seed],
             "adapter.transform_seed": str(seed) if name == "foura_random" else of_lora}
            for name in ("lora", "foura_random") for seed in range(5)
        ]  # fmt: skip
        study = study_of(rows)
        assert study.conditions == [] and compare.comparisons(study, study.quality)["seeds"].tolist() == [5]
    rows = [{**row, "dataset.split_seed": row["adapter.transform_seed"]} for row in rows]
    assert study_of(rows).conditions != []  # lora saw other splits


def test_what_the_parts_of_a_sweep_declare_adds_up(tmp_path) -> None:
    """A part without tune or margins takes nothing back; a margin that changed is named, though no report saw the first."""
    synthetic(tmp_path, "s", grid(0.0, range(3)), tune=["adapter.lr"], margins={"acc": 0.005})
    parent_run(tmp_path, "s", command="python train.py -m sweep=s adapter=head")
    sweep = load_sweep(tmp_path, "s")
    assert sweep.tune == ["adapter.lr"] and sweep.margins == {"acc": 0.005}
    assert "error rates hold as stated" in verdicts.repeated_looks(sweep.looks, sweep.declared)
    assert "other ones before" not in verdicts.repeated_looks(sweep.looks, sweep.declared)
    parent_run(tmp_path, "s", command="python train.py -m sweep=s", tune=["rank"], margins={"acc": 0.05, "loss": None})
    sweep = load_sweep(tmp_path, "s")
    assert sweep.tune == ["adapter.lr", "rank"] and sweep.margins == {"acc": 0.05}
    assert "The declared margins were other ones before" in report(tmp_path, "s").read_text(encoding="utf-8")


def test_a_value_that_was_chosen_since_is_compared_once_it_has_finished() -> None:
    by = runs(*of("lora", (1000,), val=0.4), *of("lora", (1000,), lr=0.01, val=0.6))
    by = by.assign(**{"param:evaluation.test": "False"})
    (study,) = studies(runs(*of("lora"), *of("lora", lr=0.01, state="running")), ["adapter.lr"], tuning=by)
    assert study.tuned["adapter.lr"].tolist() == [0.001] and len(study.finished) == 3
    (study,) = studies(runs(*of("lora"), *of("lora", lr=0.01)), ["adapter.lr"], tuning=by)
    assert study.tuned["adapter.lr"].tolist() == [0.01]


def test_what_was_chosen_is_not_replaced_by_what_did_better_in_the_comparison() -> None:
    """The value that tuning chose diverged in every compared run: that is the result, and no other value's is in its place."""
    by = runs(*of("lora", (1000,), val=0.4), *of("lora", (1000,), lr=0.01, val=0.6))
    by = by.assign(**{"param:evaluation.test": "False"})
    table = runs(*of("lora"), *of("lora", lr=0.01, state="diverged"), *of("head"), *of("head", lr=0.01))
    every = pd.concat([by, by.assign(adapter="head")], ignore_index=True)
    (study,) = studies(table, ["adapter.lr"], tuning=every)
    assert dict(zip(study.tuned["adapter"], study.tuned["adapter.lr"], strict=True)) == {"lora": 0.01, "head": 0.01}
    assert compare.summary(study).set_index("adapter").loc["lora", ["seeds", "diverged"]].tolist() == [0, 3]


def test_a_part_without_tuning_does_not_hide_the_tuned_one(tmp_path) -> None:
    """Runs at 0.001 are no evidence about 0.003 and 0.01, between which tuning chooses; those are running."""
    by = runs(*of("foura", (1000,), lr=0.003, val=0.4), *of("foura", (1000,), lr=0.01, val=0.6))
    by = by.assign(**{"param:evaluation.test": "False"})
    table = runs(*of("lora"), *of("foura"), *of("foura", lr=0.01, state="running"))
    (study,) = studies(table, ["adapter.lr"], tuning=by)
    assert study.adapters == ["lora", "foura"] and compare.summary(study)["running"].tolist() == [0, 3]
    synthetic(tmp_path, "s", grid(0.0, range(3)))
    sweep = load_sweep(tmp_path, "s")
    assert verdicts.nothing(sweep).startswith("No run with the tuned values has finished")


def test_two_runs_of_a_seed_are_one_pair_over_tasks() -> None:
    rows = [{"adapter": name, "seed": seed, "test": 0.5 + (0.1 + NOISE[seed] if name == "foura" else 0.0)}
            for name in ("lora", "foura") for seed in range(3)]  # fmt: skip
    found = [study_of([*rows, *rows[3:]]), study_of(rows)]
    found[1].title = "two"
    (row,) = over_tasks(found).to_dict("records")
    assert row["pairs"] == 6 and row["verdict"] == "better"


def test_a_store_that_does_not_know_the_gate_of_a_baseline_has_a_report() -> None:
    rows = [{"adapter": name, "seed": seed, "test": 0.5, "adapter.method": "foura", "adapter.gate_form": form}
            for name, form in (("foura_dct", "softmax"), ("foura", "softmax"), ("foura", "entropy"))
            for seed in range(3)]  # fmt: skip
    study = study_of(rows)
    assert study.baseline == "foura_dct" and study.unused == []


def test_rounding_is_no_spread_over_tasks_either() -> None:
    base = np.array([0.90, 0.91, 0.87])
    same = Task(np.array([0.93, 0.94, 0.90]), base, 0.01, math.nan)
    assert np.ptp(same.differences) > 0 and overall([same, same]).verdict == "undecided"


def test_a_key_that_follows_a_tuned_one_is_no_difference_between_adapters() -> None:
    table = runs(*(one for lr in (10, 20) for name in ("lora", "foura") for one in of(name, lr=lr)))
    table["param:dataset.epochs"] = table["param:trainer.max_epochs"] = table.pop("param:adapter.lr")
    table["best/acc"] = [0.9 if (a == "lora") == (e == "10") else 0.1
                         for a, e in zip(table["adapter"], table["param:dataset.epochs"], strict=True)]  # fmt: skip
    (study,) = studies(table, ["dataset.epochs"])
    assert dict(zip(study.tuned["adapter"], study.tuned["dataset.epochs"], strict=True)) == {"lora": 10, "foura": 20}
    assert verdicts.left_out(study) == []


def test_parts_from_two_folders_of_outputs_add_up_in_a_shared_store(tmp_path, monkeypatch) -> None:
    synthetic(tmp_path / "one", "s", grid(0.0, range(3)), tune=["adapter.lr"], margins={"acc": 0.005})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'one' / 'mlflow.db'}")
    parent_run(tmp_path / "two", "s", command="python train.py -m sweep=s adapter=head")
    sweep = load_sweep(tmp_path / "two", "s")
    assert sweep.tune == ["adapter.lr"] and sweep.margins == {"acc": 0.005} and len(sweep.commands) == 2


def test_runs_on_different_data_are_no_pair() -> None:
    table = runs(*of("lora", range(5)), *of("foura", range(5), test=0.6))
    table["data_fingerprint"] = [f"f{seed}" for seed in table["seed"]]
    table.loc[(table["adapter"] == "foura") & (table["seed"] == 3), "data_fingerprint"] = "changed"
    (study,) = studies(table, [])
    (row,) = compare.comparisons(study, study.quality).to_dict("records")
    assert row["seeds"] == 4 and row["unpaired"] == ""
    assert "4 shared seeds, without 3, at which the two had different data" in verdicts.reason(row)
    table["data_fingerprint"] = table["adapter"]
    (study,) = studies(table, [])
    (row,) = compare.comparisons(study, study.quality).to_dict("records")
    assert row["seeds"] == 0 and row["verdict"] == "undecided"


def test_another_key_in_which_adapters_differ_is_named() -> None:
    rows = [{"adapter": name, "seed": seed, "test": 0.5, "dataset.epochs": epochs, "optimizer.lr": epochs}
            for name, epochs in (("lora", 10), ("foura", 20)) for seed in range(3)]  # fmt: skip
    assert verdicts.left_out(study_of(rows)) == ["The adapters differ in dataset.epochs, too: 10 (lora), 20 (foura)."]


def test_the_seeds_that_would_decide_come_on_top_of_those_that_diverged(tmp_path) -> None:
    """Of five seeds foura diverged at two: more of them are pairs that are missing, and tuning seeds are not taken."""
    rows = grid(0.004, range(5), ranks=(4,))
    table = [(*row[:-1], "diverged" if row[0] == "foura" and row[2] > 2 else "finished") for row in rows]
    synthetic(tmp_path, "s", table, margins={"acc": 0.003})
    sweep = load_sweep(tmp_path, "s")
    (study,) = studies(sweep.runs, [], sweep.margins)
    compared = compare.comparisons(study, study.quality)
    (row,) = compared.to_dict("records")
    further = int(row["needed"]) - 3
    said, command = verdicts.more_seeds(compared, sweep, study)
    assert further > 0 and f"About {5 + further} seeds (now 5)" in said and f"'seed=range({5 + further})'" in command
    sweep.tuning = pd.DataFrame({"seed": [5]})
    _, command = verdicts.more_seeds(compared, sweep, study)
    assert f"seed=0,1,2,3,4,{','.join(str(6 + n) for n in range(further))}" in command
