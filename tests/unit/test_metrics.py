"""The direction of every metric, by hand: a wrong one would turn "better" into "worse" on every page."""

import pytest

from foura.metrics import METRICS

GREATER_IS_BETTER = {
    "acc": True,
    "f1": True,
    "mcc": True,
    "spearman": True,
    "pearson": True,
    "diversity": True,
    "copy_distance": True,  # copies of training images are at distance 0
    "legible": True,
    "lpips": True,
    "clip": True,
    "loss": False,
    "ppl": False,
    "bpb": False,
    "kernel": False,
    "frechet": False,
    "memorised/train": False,
    "drift/loss": False,  # what the backbone has lost on its pretraining data
}


@pytest.mark.parametrize("key", GREATER_IS_BETTER)
def test_direction(key) -> None:
    metric = METRICS[key]
    assert metric.greater_is_better is GREATER_IS_BETTER[key]
    assert metric.sign == (1.0 if GREATER_IS_BETTER[key] else -1.0)


def test_every_metric_that_adapters_are_compared_by_is_listed_here() -> None:
    from foura.metrics import with_margins

    assert {metric.key for metric in with_margins()} <= set(GREATER_IS_BETTER)


def test_a_positive_gap_is_overfitting_for_every_metric() -> None:
    assert METRICS["acc"].gap(train=0.9, validation=0.7) == pytest.approx(0.2)
    assert METRICS["loss"].gap(train=0.5, validation=0.8) == pytest.approx(0.3)
    assert METRICS["loss"].gap(train=0.8, validation=0.5) == pytest.approx(-0.3)
