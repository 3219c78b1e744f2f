"""Fields of the method's config, from the config of a run."""

import pytest

from foura import config
from foura.errors import UserError
from foura.families import build
from foura.methods.attach import attach
from tests.helpers.config import composed


@pytest.mark.parametrize(
    ("adapter", "transform", "gate"),
    [
        ("foura", "dct", "adaptive"),
        ("foura_dct", "dct", "none"),
        ("foura_dft", "dft", "none"),
        ("foura_random", "random", "none"),
    ],
)
def test_the_config_of_the_adapter(adapter, transform, gate) -> None:
    cfg = composed(f"adapter={adapter}", "rank=4", "alpha=0.5", "adapter.dropout=0.25", "dataset.limit=20")
    found = attach(build(cfg).backbone, cfg, steps=10).peft_config["default"]
    assert (found.r, found.transform, found.gate, found.foura_dropout) == (4, transform, gate, 0.25)
    assert found.foura_alpha == 2.0  # so that the scaling foura_alpha / r is alpha at every rank


def test_form_and_price_of_the_gate_reach_the_adapter() -> None:
    overrides = ["rank=4", "dataset.limit=20", "trainer.accumulate_grad_batches=2"]
    cfg = composed("adapter=foura", "adapter.gate_form=hard", "adapter.gate_sparsity=0.5", *overrides)
    found = attach(build(cfg).backbone, cfg, steps=10).peft_config["default"]
    assert (found.gate_form, found.gate_sparsity) == ("hard", 0.25)  # each of two micro-batches pays half


def test_a_price_that_a_grad_scaler_would_lose_is_refused() -> None:
    wanted = ["adapter=foura", "adapter.gate_sparsity=0.5", "trainer=gpu"]
    config.check(composed(*wanted, "trainer.precision=bf16-mixed"))
    config.check(composed("adapter=foura", "trainer=gpu", "trainer.precision=16-mixed"))
    with pytest.raises(UserError, match=r"gate_sparsity=0\.5 would have no effect with trainer\.precision=16-mixed"):
        config.check(composed(*wanted, "trainer.precision=16-mixed"))
