"""Numbers and verdicts in words: digits, reasons, the command that adds seeds."""

import math
import shlex

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from foura.report import rounding, verdicts
from foura.report.compare import comparisons
from foura.report.tables import means_table
from tests.helpers.sweeps import study_of


@pytest.mark.parametrize(
    ("uncertainty", "item", "places"),
    [
        (0.0132, 0.0, 3),
        (0.19, 0.0, 2),
        (2.5, 0.0, 1),
        (40.0, 0.0, 0),
        (0.001, 1 / 40, 2),
        (0.0, 0.0, 4),
        (math.nan, 0.01, 2),
    ],
)
def test_as_many_digits_as_the_uncertainty_supports(uncertainty, item, places) -> None:
    assert rounding.decimals(uncertainty, item) == places


def test_numbers_as_text() -> None:
    assert rounding.signed(0.01234, 3) == "+0.012" and rounding.signed(-0.01234, 3) == "−0.012"
    assert rounding.signed(-4.967e-09, 4) == "0.0000"  # no sign, and nothing finer than the place
    assert rounding.with_spread(0.94211, 0.0192) == "0.942 ± 0.019"
    assert rounding.with_spread(0.94211, math.nan) == "0.9421"
    assert rounding.with_spread(0.05, 8e-18) == "0.0500 ± 0.0000"  # of three equal values
    assert rounding.plain(132362.0) == "132,362" and rounding.plain(0.14633) == "0.1463" and rounding.plain("a") == "a"


def rows(difference: float, items: int | None = None):
    for seed in range(5):
        for adapter in ("lora", "foura"):
            test = 0.5 + 0.01 * (seed % 2) + (difference + 0.002 * (seed % 3) if adapter == "foura" else 0.0)
            yield {"adapter": adapter, "seed": seed, "test": test, **({"items": items} if items else {})}


def said(difference: float, margin: float = 0.01, items: int | None = None) -> list[str]:
    study = study_of(rows(difference, items), {"acc": margin})
    return verdicts.answer(comparisons(study, study.quality), study.quality, study)


def test_a_verdict_says_its_numbers() -> None:
    """Differences 0, 0.002, 0.004, 0, 0.002: mean 0.0016, standard error 0.00074833, ± 2.7764 times that = 0.0020777."""
    assert said(0.1)[0] == "test accuracy: of 1 comparison with lora: 1 better."
    assert said(0.1)[1] == "foura: better (+0.1016, interval +0.0995 to +0.1037; 5 shared seeds)."
    assert said(-0.1)[1].startswith("foura: worse (−0.0984, interval −0.1005 to −0.0963")
    assert said(0.0)[1] == "foura: equivalent (+0.0016, interval 0.0000 to +0.0032, within ±0.0100; 5 shared seeds)."
    small = said(0.001, margin=0.01)[1]
    assert small.startswith("foura: better") and "but within ±0.0100, which counts as no difference" in small
    undecided = said(0.0, margin=0.002)[1]
    assert undecided.startswith("foura: undecided (+0.0016, interval −0.0005 to +0.0037; 5 shared seeds; about ")


def test_a_value_that_is_not_finite_is_named_and_not_compared() -> None:
    """As where the pretraining loss overflows in half precision."""
    study = study_of({**row, "test": -math.inf} if row["seed"] == 1 else row for row in rows(0.1))
    lines = verdicts.answer(comparisons(study, study.quality), study.quality, study)
    assert lines[1:] == ["foura: undecided (5 shared seeds, of which a run's value is not finite)."]


def test_nothing_finer_than_one_item_is_printed() -> None:
    """40 items are 0.025 each: two decimals."""
    assert said(0.0, items=40)[1].startswith("foura: undecided (0.00, interval −0.02 to +0.03")
    study = study_of(rows(0.0, 40))
    from foura.report.compare import summary

    assert means_table(study, summary(study)).rows[0][2] == "0.50 ± 0.01"


@pytest.mark.parametrize(
    ("command", "have", "expected"),
    [
        ("python train.py -m sweep=s rank=4 seed=0,1,2", [0, 1, 2], "python train.py -m sweep=s rank=4 'seed=range(8)'"),
        ("python train.py -m experiment=e", [0, 1, 2], "python train.py -m experiment=e 'seed=range(8)' sweep=s"),
        ("python train.py -m sweep=s seed=range(3)", [0, 1, 2], "python train.py -m sweep=s 'seed=range(8)'"),
        ("python train.py -m sweep=s 'seed=range(0, 3)' force=true dataset.path='/my data'", [0, 1, 2],
         "python train.py -m sweep=s 'seed=range(8)' 'dataset.path=/my data'"),
        ("train.py -m x sweep=s dataset.split_seed=1 seed=3,5", [3, 5],
         "train.py -m x sweep=s dataset.split_seed=1 'seed=range(8)'"),
    ],
)  # fmt: skip
def test_the_command_for_more_seeds_is_the_sweeps_own(command, have, expected) -> None:
    found = verdicts.with_seeds(command, "s", sorted({*have, *range(8)}))
    assert found == expected
    arguments = [text for text in shlex.split(found)[2:] if "=" in text]
    params = ["seed=range(3)", *arguments]  # as an experiment brings them
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(params), max_batch_size=None)
    seeds = {text for job in jobs for text in job if text.startswith("seed=")}
    assert len(jobs) == len(seeds) == 8 and {f"seed={seed}" for seed in have} <= seeds


def test_a_command_that_an_older_version_did_not_quote_is_taken_word_by_word() -> None:
    found = verdicts.with_seeds("python train.py -m sweep=s seed=range(3) about=it's", "s", range(8))
    assert shlex.split(found) == ["python", "train.py", "-m", "sweep=s", "seed=range(8)", "about=it's"]


def test_a_measure_without_a_margin_is_named() -> None:
    study = study_of(rows(0.0))
    assert verdicts.margins(study) == "Equivalent means within ±0.01 in test accuracy, ±0.01 in gap in accuracy."
    object.__setattr__(study.quality, "margin", None)
    assert "No margin is declared for test accuracy, so that nothing is equivalent there." in verdicts.margins(study)


def test_what_an_interval_covers_follows_from_the_data() -> None:
    study, unknown = study_of(rows(0.0, 40)), study_of(rows(0.0))
    table = comparisons(study, study.quality)
    said = verdicts.coverage(study, table)
    assert "the order of the data. They do not cover the choice of the 40 test items" in said
    study.finished["data_fingerprint"] = study.finished["seed"].astype(str)
    assert "and the draw of training items" in verdicts.coverage(study, table)
    study.finished["param:dataset.split_seed"] = "0"
    assert verdicts.coverage(study, table).endswith("All seeds share their splits (dataset.split_seed=0).")
    said = verdicts.coverage(study, table.assign(items_low=-0.1))
    assert "The second interval, over test items too, also covers the choice of the 40 test items" in said
    assert "The number of test items was not recorded" in verdicts.coverage(unknown, table)


def test_splits_that_are_drawn_with_the_seed_are_no_condition_and_are_covered() -> None:
    drawn = [{**row, "dataset.split_seed": row["seed"]} for row in rows(0.1, 40)]
    study = study_of(drawn)
    assert study.conditions == study_of(rows(0.1, 40)).conditions
    table = comparisons(study, study.quality)
    said = verdicts.coverage(study, table)
    assert "the start of the adapter, the cut of the splits, the order of the data" in said
    assert (
        "They do not cover other data or other backbones. Every seed cuts anew the splits that the data does not"
        in said
    )
    assert list(table["verdict"]) == ["better"]
    study.finished["data_fingerprint"] = "0"  # the data brings all of its splits
    assert "They do not cover the choice of the 40 test items" in verdicts.coverage(study, table)
