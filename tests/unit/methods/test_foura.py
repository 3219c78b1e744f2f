"""Fields of the method's config, from the config of a run."""

import pytest

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
    cfg = composed(f"adapter={adapter}", "rank=4", "alpha=0.5", "dataset.limit=20")
    found = attach(build(cfg).backbone, cfg, steps=10).peft_config["default"]
    assert (found.r, found.transform, found.gate) == (4, transform, gate)
    assert found.foura_alpha == 2.0  # so that the scaling foura_alpha / r is alpha at every rank
