"""Ranks of equal cost: iso_parameters=true gives every adapter as many parameters as LoRA has at that rank, or fewer."""

import pytest

from foura.families import build
from foura.methods.attach import attach
from tests.helpers.config import composed


@pytest.mark.parametrize("adapter", ["lora", "foura_dct", "foura_dft", "foura", "dora", "adalora", "sora"])
def test_equal_parameters_are_as_near_below_loras_as_a_rank_can_be(adapter) -> None:
    def count(*overrides: str) -> tuple[int, int]:
        cfg = composed(*overrides)
        model = attach(build(cfg).backbone, cfg, steps=100)
        ranks = {layer.r["default"] for layer in model.modules() if isinstance(getattr(layer, "r", None), dict)}
        own = [p.numel() for name, p in model.named_parameters() if p.requires_grad and "head" not in name]
        return sum(own), ranks.pop()

    budget, _ = count("adapter=lora", "rank=24")
    spent, rank = count(f"adapter={adapter}", "rank=24", "iso_parameters=true")
    assert 0.9 * budget < spent <= budget
    own = rank if adapter != "adalora" else round(rank / 1.5)  # it starts wider
    if own < 24:
        assert count(f"adapter={adapter}", f"rank={own + 1}")[0] > budget
