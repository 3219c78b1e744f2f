"""Margins in the config: any metric that adapters are compared by, above 0, without another experiment or folder."""

import pytest

from foura import config, mistakes
from foura.errors import UserError
from foura.metrics import METRICS, with_margins
from tests.helpers.config import composed


def test_margins_do_not_change_the_experiment_its_folder_or_the_sweep() -> None:
    plain, declared = composed(), composed("margins.acc=0.02")
    config.check(declared)
    assert declared.margins.acc == 0.02 and composed("margins={acc: 0.02}").margins == declared.margins
    assert config.run_key(plain) == config.run_key(declared)
    assert not [key for key in config.scientific(declared) if key.startswith("margins")]
    told = ["sweep=null", "rank=4"]
    assert config._sweep_name(None, [*told, "margins.acc=0.02"]) == config._sweep_name(None, told)
    with open(config.__file__.replace("foura/config.py", "conf/config.yaml"), encoding="utf-8") as file:
        text = file.read()
    assert all(f"margins.{metric.margin_key}," in text for metric in with_margins())  # left out of folder names


@pytest.mark.parametrize("value", ["0", "-0.01", "inf", "nan"])
def test_a_margin_must_be_a_positive_number(value) -> None:
    with pytest.raises(UserError, match=r"margins\.acc must be a number above 0"):
        config.check(composed(f"margins.acc={value}"))


def test_the_margin_of_an_unknown_metric_is_answered_with_those_there_are() -> None:
    with pytest.raises(Exception, match="Could not override") as caught:
        composed("margins.accuracy=0.1")
    assert mistakes.explain(caught.value).startswith(
        "margins.accuracy is not the margin of a metric. Valid choices: loss, acc"
    )


def test_defaults_are_of_one_kind_each() -> None:
    assert METRICS["acc"].margin == 0.01 and METRICS["loss"].margin_share == 0.02
    for metric in METRICS.values():
        assert metric.margin is None or metric.margin_share is None
        assert all(value is None or value > 0 for value in (metric.margin, metric.margin_share))
