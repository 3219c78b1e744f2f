"""FouRA on 8-bit and 4-bit linear layers, by PEFT's backend for bitsandbytes (which runs on a CPU too)."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

import foura
from foura import FouraConfig

bnb = pytest.importorskip("bitsandbytes", reason="the extra 'quantised' is not installed")


def quantised(bits: int) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Linear(64, 96)
    if bits == 8:
        layer = bnb.nn.Linear8bitLt(64, 96, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(64, 96, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(plain.state_dict(), strict=False)
    return nn.Sequential(layer).to("cpu")


@pytest.mark.parametrize("fields", [{}, {"transform": "dft"}, {"gate": "adaptive"}], ids=["dct", "dft", "gated"])
@pytest.mark.parametrize("bits", [8, 4])
def test_training_merging_and_export(bits, fields) -> None:
    base = quantised(bits)
    x = torch.randn(4, 6, 64)
    model = get_peft_model(copy.deepcopy(base), FouraConfig(r=4, foura_alpha=8, target_modules=["0"], **fields))
    layer = model.base_model.model[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "foura_B" in name:
                nn.init.normal_(parameter, std=0.3)
    torch.testing.assert_close(model(x), base(x) + layer.delta("default", x), rtol=1e-3, atol=1e-3)
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert layer.base_layer.weight.dtype in (torch.int8, torch.uint8)
    if "gate" in fields:
        foura.freeze_gates(model, [x])
    out = model(x).detach()
    _, state = foura.to_lora(model)
    down, up = (state[f"base_model.model.0.lora_{side}.weight"] for side in "AB")
    bare = layer.base_layer(x).detach()
    close = 1e-3 if bits == 8 else 2e-2  # on a CPU bitsandbytes computes some 4-bit products in bfloat16
    torch.testing.assert_close(bare + x @ down.T @ up.T, out, rtol=close, atol=close)
    merged = model.merge_and_unload()
    assert type(merged[0]) is type(base[0])
    error = (merged(x) - out).norm() / (out - bare).norm()
    assert error < (0.05 if bits == 8 else 0.5)  # what quantising W0 + ΔW again costs
