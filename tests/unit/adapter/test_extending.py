"""A transform and a gate from outside: a class and one line in a dict, and everything works with them."""

import copy
import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import foura
from foura import FouraConfig
from foura.adapter.gates import GATES, Gate
from foura.adapter.transforms import TRANSFORMS, Transform


class Hartley(Transform):
    """The discrete Hartley transform: real, orthonormal, for any length."""

    @staticmethod
    def basis(length: int, seed: int) -> Tensor:
        angle = 2 * math.pi / length * torch.outer(torch.arange(length), torch.arange(length)).double()
        return (angle.cos() + angle.sin()) / math.sqrt(length)


class ReluGate(Gate):
    """One gate per sample and rank, from the mean magnitude over its real tokens."""

    def __init__(self, rank: int, scope: str) -> None:
        super().__init__(rank, scope)
        self.net = nn.Linear(rank, rank)

    def forward(self, u: Tensor) -> Tensor:
        mask = self.mask_for(u)
        real = torch.ones(u.shape[:2], dtype=torch.bool) if mask is None else mask
        mean = (u.abs() * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None]
        return torch.relu(0.5 + self.net(mean))


class Net(nn.Module):
    """Inputs (S, T, 10); `qkv` is a fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(10, 12), nn.Linear(12, 7)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.out(torch.tanh(self.qkv(x)))


@pytest.fixture
def base() -> Net:
    return Net().double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 6, 10, dtype=torch.float64)


def trained(base: nn.Module, x: Tensor, **fields) -> PeftModel:
    """The base with an adapter that some steps of training have moved."""
    settings = {"r": 4, "foura_alpha": 3, "target_modules": ["qkv", "out"], "output_splits": {"qkv": 3}, **fields}
    model = get_peft_model(copy.deepcopy(base), FouraConfig(**settings), autocast_adapter_dtype=False)
    target = torch.randn(5, 6, 7, dtype=torch.float64)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer, losses = torch.optim.Adam(parameters, lr=0.05), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(was, parameter) for was, parameter in zip(start, parameters, strict=True))
    return model.eval()


def assert_saves_and_loads(model: PeftModel, base: nn.Module, x: Tensor, folder) -> None:
    model.save_pretrained(str(folder))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(folder), adapter_name="another").eval()
    assert torch.equal(loaded(x), model(x)) and not torch.allclose(model(x), base(x))


def assert_exports(model: PeftModel, base: nn.Module, x: Tensor, folder) -> None:
    """As a LoRA, and merged, it is the same function."""
    foura.save_as_lora(model, folder)
    lora = PeftModel.from_pretrained(copy.deepcopy(base), str(folder), autocast_adapter_dtype=False).eval()
    assert type(lora.base_model).__name__ == "LoraModel"
    out = model(x)
    torch.testing.assert_close(lora(x), out, rtol=0, atol=1e-10)
    torch.testing.assert_close(copy.deepcopy(model).merge_and_unload()(x), out, rtol=0, atol=1e-10)


# -- a transform


@pytest.fixture
def hartley(monkeypatch) -> None:
    monkeypatch.setitem(TRANSFORMS, "hartley", Hartley)


def test_a_transform_is_refused_until_it_is_registered(base, x, tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="transform='hartley' is not known; choose one of dct, dft, identity, random"):
        FouraConfig(transform="hartley")
    with monkeypatch.context() as registered:
        registered.setitem(TRANSFORMS, "hartley", Hartley)
        trained(base, x, transform="hartley").save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="transform='hartley' is not known"):
        PeftModel.from_pretrained(base, str(tmp_path))


def test_a_transform_trains_saves_merges_and_exports(hartley, base, x, tmp_path) -> None:
    model = trained(base, x, transform="hartley")
    assert_saves_and_loads(model, base, x, tmp_path / "foura")
    shapes = {tuple(tensor.shape) for tensor in load_file(tmp_path / "foura" / "adapter_model.safetensors").values()}
    assert shapes == {(4, 10), (12, 4), (4, 12), (7, 4)}  # A and B, no matrix
    assert_exports(model, base, x, tmp_path / "lora")


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)], ids=["folded", "fewer tokens than ranks"])
def test_a_transform_is_the_equation(hartley, base, x, rows) -> None:
    layer = trained(base, x, transform="hartley").base_model.model.qkv
    x = x[rows, :3]
    A, B = layer.foura_A["default"], layer.foura_B["default"]
    coefficients = (x @ Hartley.basis(10, 0).T) @ A.T @ B.T
    delta = torch.cat([block @ Hartley.basis(4, 0) for block in coefficients.split(4, dim=-1)], dim=-1)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 / 4 * delta, rtol=0, atol=1e-10)


def test_a_transform_compiles(hartley, base, x) -> None:
    torch._dynamo.reset()
    layer = trained(base, x, transform="hartley").base_model.model.qkv
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-10)


def test_adapters_of_different_transforms_combine(hartley, base, x) -> None:
    model = trained(base, x, transform="hartley")
    model.add_adapter("dft", FouraConfig(r=2, target_modules=["qkv", "out"], transform="dft", init_weights=False))
    model.add_weighted_adapter(["default", "dft"], [0.5, -2.0], "sum", combination_type="cat")
    layer = model.base_model.model.qkv
    wanted = 0.5 * layer.get_delta_weight("default") - 2.0 * layer.get_delta_weight("dft")
    torch.testing.assert_close(layer.get_delta_weight("sum"), wanted, rtol=0, atol=1e-10)


# -- a gate


@pytest.fixture
def gated(monkeypatch, base, x) -> PeftModel:
    monkeypatch.setitem(GATES, "relu", ReluGate)
    return trained(base, x, gate="relu")


def gates_of(layer, x: Tensor) -> Tensor:
    """(S, r), by the equation."""
    F = TRANSFORMS["dct"].basis(layer.in_features, 0)
    u = (x @ F.T @ layer.foura_A["default"].T).abs().mean(1)
    net = layer.foura_gate["default"].net
    return torch.relu(0.5 + u @ net.weight.T + net.bias)


def test_a_gate_is_refused_until_it_is_registered() -> None:
    with pytest.raises(ValueError, match="gate='relu' is not known; choose one of none, adaptive, frozen"):
        FouraConfig(gate="relu")


def test_a_gate_trains_saves_and_loads(gated, base, x, tmp_path) -> None:
    layer = gated.base_model.model.qkv
    z = x @ TRANSFORMS["dct"].basis(10, 0).T @ layer.foura_A["default"].T
    spectrum = (gates_of(layer, x)[:, None] * z) @ layer.foura_B["default"].T
    delta = torch.cat([block @ TRANSFORMS["dct"].basis(4, 0) for block in spectrum.split(4, dim=-1)], dim=-1)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 / 4 * delta, rtol=0, atol=1e-10)
    assert_saves_and_loads(gated, base, x, tmp_path)
    assert "base_model.model.qkv.foura_gate.net.weight" in load_file(tmp_path / "adapter_model.safetensors")


def test_a_gate_refuses_whatever_needs_one_delta(gated, x, tmp_path) -> None:
    for attempt in (
        gated.merge_adapter,
        gated.merge_and_unload,
        lambda: foura.to_lora(gated),
        lambda: gated.add_weighted_adapter(["default"], [1.0], "new"),
    ):
        with pytest.raises(ValueError, match=r"adaptive gate.*freeze_gates"):
            attempt()
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="gate='relu'"):
        get_peft_model(attention, FouraConfig(target_modules=["0"], gate="relu"))


def test_a_gate_is_counted_frozen_and_exported(gated, base, x, tmp_path) -> None:
    layers = {"qkv": gated.base_model.model.qkv, "out": gated.base_model.model.out}
    inputs = {"qkv": x, "out": torch.tanh(layers["qkv"](x))}
    gates = {name: gates_of(layer, inputs[name]) for name, layer in layers.items()}
    masks = {name: gate.mean(0) > 0.5 for name, gate in gates.items()}
    assert 0 < sum(int(mask.sum()) for mask in masks.values()) < 8  # some open, some closed
    assert foura.effective_rank(gated, [x]) == pytest.approx(
        {name: float((gate > 0.5).sum(1).double().mean()) for name, gate in gates.items()}
    )
    assert foura.freeze_gates(gated, [x]) == {name: int(mask.sum()) for name, mask in masks.items()}
    assert gated.peft_config["default"].gate == "frozen"
    assert all(torch.equal(layer.foura_gate_mask["default"], masks[name]) for name, layer in layers.items())
    assert_saves_and_loads(gated, base, x, tmp_path / "foura")
    assert_exports(gated, base, x, tmp_path / "lora")


def test_a_gate_can_ignore_padding(gated, x) -> None:
    longer = torch.cat([x, 50 * torch.randn(5, 3, 10, dtype=torch.float64)], dim=1)
    mask = torch.ones(5, 9)
    mask[:, 6:] = 0
    torch.testing.assert_close(gated(longer, attention_mask=mask)[:, :6], gated(x), rtol=0, atol=1e-10)
    assert not torch.allclose(gated(longer)[:, :6], gated(x))
    batch = {"x": longer, "attention_mask": mask}
    assert foura.effective_rank(gated, [batch]) == pytest.approx(foura.effective_rank(gated, [x]))
