"""The numbers of an update and of a step's cost, by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from foura.run.cost import Cost
from foura.run.layers import layer_table, mean_effective_rank, mean_open_std, total_delta_norm


def test_numbers_of_a_whole_adapter() -> None:
    """Frobenius norms 3 and 4 are 5 together; ranks and spreads are means over the layers that have them."""
    rows = [
        {"delta_norm": 3.0, "effective_rank": 2.0, "open_std": None},
        {"delta_norm": 4.0, "effective_rank": 4.0, "open_std": 0.5},
    ]
    assert total_delta_norm(rows) == 5.0 and mean_effective_rank(rows) == 3.0 and mean_open_std(rows) == 0.5
    none = [*rows, dict.fromkeys(rows[0])]
    assert total_delta_norm(none) is None and mean_effective_rank(none) == 3.0
    assert mean_effective_rank(none[2:]) is None and mean_open_std(rows[:1]) is None


@pytest.mark.parametrize("reduced", [False, True])
def test_an_update_is_against_the_weight_that_the_backbone_had(reduced) -> None:
    """ΔW = 2 · 1 1ᵀ of (3, 4) has norm 2 √12; against a backbone with W less by 1 everywhere it is 3 · 1 1ᵀ."""
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(4, 3)), LoraConfig(r=1, lora_alpha=2, target_modules=["0"])
    )
    layer = model.base_model.model[0]
    for part in (layer.lora_A, layer.lora_B):
        torch.nn.init.ones_(part["default"].weight)
    before = {"0": layer.base_layer.weight.detach() - 1.0} if reduced else {}
    method = SimpleNamespace(open_ranks=lambda layer: 1.0)
    (row,) = layer_table(model, method, [], before)
    assert row["delta_norm"] == pytest.approx((3 if reduced else 2) * math.sqrt(12), rel=1e-6)
    assert row["rank"] == 1 and row["stable_rank"] == pytest.approx(1.0) and row["parameters"] == 7


def test_a_step_is_the_median_over_epochs_without_the_first() -> None:
    cost = Cost()
    for times, expected in (([5.0], 5000.0), ([5.0, 1.0], 1000.0), ([5.0, 1.0, 2.0, 9.0], 2000.0)):
        cost.step_times = times
        assert cost.step_time_ms() == expected
