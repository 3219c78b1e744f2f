"""Fields of PEFT's LoRA config, from the config of a run."""

import math

import pytest

from foura.families import build
from foura.methods.attach import attach
from tests.helpers.config import composed


@pytest.mark.parametrize(
    ("adapter", "rslora", "dora", "start", "scaling"),
    [
        ("lora", False, False, True, 0.5),
        ("rslora", True, False, True, 0.5 * math.sqrt(4)),
        ("dora", False, True, True, 0.5),
        ("pissa", False, False, "pissa", 0.5),
    ],
)
def test_the_config_of_the_adapter(adapter, rslora, dora, start, scaling) -> None:
    """The update is alpha · B A, and of rsLoRA alpha · √r · B A: lora_alpha / √r of lora_alpha = alpha · r."""
    cfg = composed(f"adapter={adapter}", "rank=4", "alpha=0.5", "adapter.dropout=0.25", "dataset.limit=20")
    model = attach(build(cfg).backbone, cfg, steps=10)
    found = model.peft_config["default"]
    assert (found.r, found.lora_alpha, found.lora_dropout) == (4, 2.0, 0.25)
    assert (found.use_rslora, found.use_dora, found.init_lora_weights) == (rslora, dora, start)
    layers = [module for module in model.modules() if hasattr(module, "scaling")]
    assert layers and all(layer.scaling["default"] == pytest.approx(scaling) for layer in layers)
