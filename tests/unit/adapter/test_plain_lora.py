"""PEFT's own LoRA through `save_as_lora`: the same function, with the scaling in lora_B, or a sentence."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import foura


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 3)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Linear(6, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(self.words(ids).movedim(-1, 1)).mean((2, 3)))


IDS = torch.arange(25).reshape(1, 5, 5) % 7


def adapted(**fields) -> tuple[PeftModel, nn.Module]:
    """(a model whose LoRA is not zero, a copy of the frozen model)."""
    base = Small()
    before = copy.deepcopy(base)
    model = get_peft_model(base, LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["conv", "out"], **fields}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return model.eval(), before


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"out": 1}, "alpha_pattern": {"conv": 5}},
        {"modules_to_save": ["words"]},
    ],
    ids=str,
)
def test_it_computes_the_same_with_a_scaling_of_one(fields, tmp_path) -> None:
    model, before = adapted(**fields)
    said = foura.save_as_lora(model, tmp_path)
    assert said.startswith("a LoRA of rank 2")
    loaded = PeftModel.from_pretrained(before, str(tmp_path)).eval()
    config = loaded.peft_config["default"]
    assert config.r == config.lora_alpha == 2 and not config.rank_pattern
    torch.testing.assert_close(loaded(IDS), model(IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, "'default' is a variant of LoRA"),
        ({"lora_bias": True}, "'default' is a variant of LoRA"),
        ({"target_modules": ["words", "out"]}, "words is a Embedding, whose LoRA only PEFT's own naming holds"),
    ],
)
def test_what_is_more_than_two_factors_is_refused(fields, said) -> None:
    with pytest.raises(ValueError, match=said):
        foura.to_lora(adapted(**fields)[0])


def test_a_start_that_changes_the_frozen_weights_is_refused() -> None:
    model = get_peft_model(Small(), LoraConfig(r=2, target_modules=["out"], init_lora_weights="pissa"))
    with pytest.raises(ValueError, match="init_lora_weights='pissa' changes the frozen weights at the start"):
        foura.to_lora(model)
    with pytest.raises(ValueError, match="no FouRA adapter, and no LoRA, named 'other'"):
        foura.to_lora(model, "other")
