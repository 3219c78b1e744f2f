"""Forgetting: in which runs it is measured, and that measuring it changes nothing else."""

import pytest
import torch

from foura.config import run_key
from foura.families import build
from foura.run.before import measures_forgetting, pretraining_loss
from tests.helpers.config import composed
from tests.helpers.runs import status

OWN = ("backbone.name=timm/some", "backbone.img_size=16")


@pytest.mark.parametrize("backbone", ["vit", "llama_small", "unet", "bert"])
def test_bundled_backbones_have_it_measured(backbone) -> None:
    assert measures_forgetting(composed(f"backbone={backbone}"))
    assert not measures_forgetting(composed(f"backbone={backbone}", "evaluation.drift=false"))


@pytest.mark.parametrize(
    "overrides",
    [
        OWN,
        ("backbone.pretrained=false",),
        ("trainer=fsdp",),
        ("trainer.precision=bf16-true",),
        ("evaluation.test=false",),
        ("backbone=llama_small", "backbone.torch_dtype=bfloat16"),
    ],
)
def test_it_is_left_out_where_it_means_nothing_or_costs_more(overrides) -> None:
    assert not measures_forgetting(composed(*overrides))


def test_asked_for_it_is_measured() -> None:
    assert measures_forgetting(composed("trainer.precision=bf16-true", "evaluation.drift=true"))


def test_the_default_has_the_key_of_runs_that_did_not_measure_it() -> None:
    """Their results stay: only evaluation.drift=true had a key of its own."""
    keys = [
        run_key(composed(*overrides)) for overrides in ((), ("evaluation.drift=false",), ("evaluation.drift=true",))
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("backbone", ["vit", "bert"])
def test_the_random_generator_stays_where_it_was(backbone) -> None:
    cfg = composed(f"backbone={backbone}")
    parts = build(cfg)
    before = torch.get_rng_state()
    loss = pretraining_loss(parts, parts.backbone.model, cfg)
    assert torch.equal(torch.get_rng_state(), before) and loss > 0
    assert pretraining_loss(parts, parts.backbone.model, cfg) == loss


def test_measuring_it_changes_no_other_number(train) -> None:
    quick = ("adapter=foura", "rank=2", "dataset.limit=40", "dataset.epochs=1", "adapter.dropout=0.1")
    measured = status(train(*quick))["metrics"]
    left = status(train(*quick, "evaluation.drift=false", into="other"))["metrics"]
    assert "drift/loss" in measured and "drift/loss" not in left
    timed = ("cost/step_time_ms", "cost/peak_memory_mb")
    numbers = {key: value for key, value in left.items() if key not in timed}
    assert numbers == {key: measured[key] for key in numbers} and len(numbers) > 10
