"""Models that torchao's quantize_() has quantised by itself, without a config of transformers that says how."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

import foura
from foura import FouraConfig
from foura.adapter.merging import quantization_backend


class Packed(torch.Tensor):
    """In the place of torchao's tensor subclass: a weight that is an ordinary number for everything but merging."""

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


@pytest.fixture(params=["torchao", "imitated"])
def base(request, monkeypatch) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32))
    if request.param == "torchao":
        torchao = pytest.importorskip("torchao.quantization")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        return model
    import sys
    import types

    import peft.utils.quantization_utils as of_peft

    monkeypatch.setattr(of_peft, "is_torchao_available", lambda: True)
    monkeypatch.setattr(of_peft, "is_torchao_ge_v0_18_0", lambda: True)
    modules = {"torchao": types.ModuleType("torchao"), "torchao.utils": types.ModuleType("torchao.utils")}
    modules["torchao.utils"].TorchAOBaseTensor = Packed
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
    return model


@pytest.mark.parametrize("fields", [{}, {"transform": "dft"}, {"gate": "adaptive"}], ids=["dct", "dft", "gated"])
def test_it_trains_exports_and_refuses_to_merge(base, fields, tmp_path) -> None:
    x = torch.randn(5, 7, 64)
    bare = base(x).detach()
    model = get_peft_model(base, FouraConfig(r=4, target_modules=["0", "2"], **fields))
    torch.testing.assert_close(model(x), bare)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    if "gate" in fields:
        foura.freeze_gates(model, [x])
    model.eval()
    with torch.no_grad():
        expected = model(x)
        for merge in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(TypeError, match="torchao"):
                merge()
            torch.testing.assert_close(model(x), expected)  # nothing was touched
    _, state = foura.to_lora(model)
    layer, kind = model.base_model.model[0], "base_model.model.0.lora_{}.weight"
    delta = state[kind.format("B")] @ state[kind.format("A")]
    torch.testing.assert_close(delta, layer.get_delta_weight("default"), rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_not_quantised_has_no_backend() -> None:
    assert quantization_backend(nn.Linear(3, 4)) is None
