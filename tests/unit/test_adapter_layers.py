"""FouRA on every kind of layer: textbook equality, merging, saving, and export to plain LoRA."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftModel, get_peft_model
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.nn.utils.prune import l1_unstructured
from transformers.pytorch_utils import Conv1D

import foura
from foura import FouraConfig
from foura.adapter.transforms import Transform
from tests.reference import foura as textbook


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x.flip(1), x * 2)[0]


def prune(layer: nn.Module) -> nn.Module:
    return l1_unstructured(layer, "weight", amount=0.4)


class Alone(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


KINDS = {
    "linear": (lambda: Alone(nn.Linear(10, 7)), lambda: torch.randn(3, 5, 10)),
    "conv1d_hf": (lambda: Alone(Conv1D(7, 10)), lambda: torch.randn(3, 5, 10)),
    "embedding": (lambda: Alone(nn.Embedding(11, 6)), lambda: torch.randint(0, 11, (3, 5))),
    "conv1d": (lambda: Alone(nn.Conv1d(6, 9, 3, stride=2, padding=1)), lambda: torch.randn(3, 6, 12)),
    "conv2d": (lambda: Alone(nn.Conv2d(6, 9, (3, 2), padding=1)), lambda: torch.randn(3, 6, 5, 4)),
    "conv2d_1x1": (lambda: Alone(nn.Conv2d(6, 9, 1)), lambda: torch.randn(3, 6, 5, 4)),
    "conv3d": (lambda: Alone(nn.Conv3d(4, 5, 3, padding=1)), lambda: torch.randn(2, 4, 3, 4, 3)),
    "attention": (Attention, lambda: torch.randn(3, 5, 8)),
}
TRANSFORMS = ("dct", "dft", "identity", "random")


def made(kind: str, **fields) -> tuple[nn.Module, PeftModel, torch.Tensor]:
    """(the base model, the same with a trained-looking adapter, an input), in float64."""
    build, draw = KINDS[kind]
    base, x = build().double(), draw()
    x = x.double() if x.is_floating_point() else x
    config = FouraConfig(**{"r": 4, "foura_alpha": 3, "target_modules": ["layer"], **fields})
    model = get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return base, model.eval(), x


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged_and_saved_is_loaded(kind, transform, tmp_path) -> None:
    base, model, x = made(kind, transform=transform)
    out = model(x)
    assert (out - base(x)).abs().max() > 1e-2
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    torch.testing.assert_close(loaded(x), out, rtol=0, atol=1e-12)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(x), out, rtol=0, atol=1e-10)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), out, rtol=0, atol=1e-10)
    merged = model.merge_and_unload()
    assert type(merged.layer) is type(base.layer)
    torch.testing.assert_close(merged(x), out, rtol=0, atol=1e-10)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gate", ["none", "frozen"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "attention"])
def test_the_export_is_a_plain_lora(kind, gate, transform, tmp_path) -> None:
    base, model, x = made(kind, transform=transform, gate=gate)
    if gate == "frozen":
        model.base_model.model.layer.foura_gate_mask["default"] = torch.tensor([True, False, True, False])
    foura.save_as_lora(model, tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path), autocast_adapter_dtype=False).eval()
    assert type(loaded.base_model).__name__ == "LoraModel"
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_delta_of_a_given_gate_is_that_of_the_frozen_one(kind) -> None:
    _, model, _ = made(kind, gate="frozen")
    layer, gate = model.base_model.model.layer, torch.tensor([True, False, True, False])
    wide_open = layer.get_delta_weight("default")
    layer.foura_gate_mask["default"] = gate
    frozen = layer.get_delta_weight("default")
    layer.foura_gate_mask["default"] = torch.ones(4, dtype=torch.bool)
    assert frozen.shape == layer.get_base_weight().shape and not torch.allclose(frozen, wide_open)
    torch.testing.assert_close(layer.get_delta_weight("default", gate.double()), frozen, rtol=0, atol=1e-12)


def test_attention_has_no_export_for_as_long_as_peft_adds_its_out_projection_twice() -> None:
    _, model, x = made("attention")
    with pytest.raises(ValueError, match="merge_and_unload"):
        foura.to_lora(model)
    lora = get_peft_model(
        KINDS["attention"][0]().double(), LoraConfig(target_modules=["layer"], init_lora_weights=False)
    ).eval()
    bare, layer = copy.deepcopy(lora).unload(), lora.base_model.model.layer
    bare.layer.in_proj_weight.data += layer.get_delta_weight("default")
    bare.layer.out_proj.weight.data += 2 * layer.base_layer.out_proj.get_delta_weight("default")
    torch.testing.assert_close(lora(x), bare(x))  # the day this fails, exports of attention can be allowed


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "attention"])
@pytest.mark.parametrize("scope", ["sequence", "token"])
def test_an_adaptive_gate_runs_freezes_and_then_merges(kind, scope) -> None:
    base, model, x = made(kind, gate="adaptive", gate_scope=scope)
    out = model(x)
    assert torch.isfinite(out).all() and not torch.allclose(out, base(x))
    with pytest.raises(ValueError, match="adaptive gate"):
        model.merge_adapter()
    foura.freeze_gates(model, [x])
    frozen = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), frozen, rtol=0, atol=1e-10)


@pytest.mark.parametrize("transform", ["dct", "identity"])
def test_a_convolution_is_the_textbook(transform) -> None:
    """Transform the channels, convolve with A, multiply by B, transform the channels back."""
    base, model, x = made("conv2d", transform=transform)
    layer = model.base_model.model.layer
    F = {"dct": textbook.dct_matrix, "identity": lambda n: torch.eye(n, dtype=torch.float64)}[transform]
    spectrum = torch.einsum("kc,schw->skhw", F(6), x)
    z = nn.functional.conv2d(spectrum, layer.foura_A["default"], padding=1)
    out = torch.einsum("mk,mr,srhw->skhw", F(9), layer.foura_B["default"], z)
    torch.testing.assert_close(model(x) - base(x), 3 / 4 * out, rtol=0, atol=1e-10)


def test_an_embedding_is_the_textbook() -> None:
    base, model, x = made("embedding", transform="dct")
    layer = model.base_model.model.layer
    z = layer.foura_A["default"].T[x]
    delta = z @ layer.foura_B["default"].T @ textbook.dct_matrix(6)
    torch.testing.assert_close(model(x) - base(x), 3 / 4 * delta, rtol=0, atol=1e-10)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("compiled", [False, True])
def test_no_transform_sees_the_vocabulary(transform, compiled, monkeypatch) -> None:
    """A random basis over 200,000 tokens would take 320 GB."""
    lengths = []

    def basis(self: Transform, length: int, like: torch.Tensor) -> torch.Tensor:
        lengths.append(length)
        return whole(self, length, like)

    whole = Transform._matrix
    monkeypatch.setattr(Transform, "_matrix", basis)
    config = FouraConfig(r=4, target_modules=["layer"], transform=transform, init_weights=False)
    model, x = get_peft_model(Alone(nn.Embedding(200_000, 6)), config), torch.randint(0, 200_000, (3, 5))
    layer = model.base_model.model.layer
    out = (torch.compile(model, backend="aot_eager") if compiled else model)(x)
    out.sum().backward()
    assert layer.foura_B["default"].grad.abs().sum() > 0 and set(lengths) <= {6}
    delta = torch.stack([layer.delta("default", x[:, i]) for i in range(5)], 1)
    torch.testing.assert_close(out, layer.base_layer(x) + delta)
    torch.testing.assert_close(layer.get_delta_weight("default")[x], delta)


@pytest.mark.parametrize("kind", ["linear", "embedding", "conv2d"])
def test_an_adapter_that_accelerate_has_offloaded_says_what_to_do(kind) -> None:
    _, model, x = made(kind)
    cpu_offload(model, torch.device("cpu"))
    with torch.no_grad(), pytest.raises(RuntimeError, match="merge the adapter before"):
        model(x)


def test_a_scaled_embedding_scales_the_adapter_too() -> None:
    _, model, x = made("embedding")
    delta = model.base_model.model.layer.delta("default", x)
    model.base_model.model.layer.base_layer.embed_scale = 3.0
    torch.testing.assert_close(model.base_model.model.layer.delta("default", x), 3.0 * delta)


def test_attention_projections_are_split_and_see_masks() -> None:
    _, model, x = made("attention")
    layer = model.base_model.model.layer
    assert layer.transform["default"].splits == 3 and layer.base_layer.out_proj.transform["default"].splits == 1
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[:, -1] = True
    changed = x.clone()
    changed[:, -1] += 1.0
    one, other = (layer(x, v, v, key_padding_mask=padding)[0] for v in (x, changed))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(layer(x, x, x)[0], layer(x, changed, changed)[0])


def test_attention_may_be_called_by_keyword() -> None:
    _, model, x = made("attention")
    layer = model.base_model.model.layer
    assert torch.equal(layer(value=x * 2, key=x.flip(1), query=x)[0], model(x))
    with model.disable_adapter():
        assert torch.equal(layer(query=x, key=x, value=x)[0], layer.base_layer(x, x, x)[0])


@pytest.mark.parametrize("pattern", [{"layer": 16}, {"out_proj": 16}, {}])
def test_attention_is_swapped_with_the_strength_that_it_was_trained_with(pattern, tmp_path) -> None:
    _, one, x = made("attention")
    _, other, _ = made("attention", alpha_pattern=pattern, foura_alpha=2)
    other.save_pretrained(str(tmp_path))
    foura.hotswap_adapter(one, tmp_path)
    one.base_model.model.layer.load_state_dict(other.base_model.model.layer.state_dict())  # the same base weights
    torch.testing.assert_close(one(x), other(x), rtol=0, atol=1e-12)


class Padding(nn.Conv1d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(nn.functional.pad(x, (2, 0)), weight, bias)


class Strided(nn.Conv2d):
    """A subclass that computes as its base."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, stride=2, **kwargs)


NORMED = {
    "conv1d": (lambda: nn.Conv1d(6, 9, 3, padding=1), (3, 6, 12)),
    "conv2d": (lambda: Strided(6, 9, 3), (3, 6, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 5, 3, padding=1), (2, 4, 3, 4, 3)),
    "linear": (lambda: nn.Linear(10, 7), (3, 5, 10)),
}


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, prune]
)
@pytest.mark.parametrize("kind", NORMED)
def test_a_layer_whose_weight_is_computed_is_adapted_and_refuses_to_merge(kind, norm) -> None:
    build, shape = NORMED[kind]
    layer, x = norm(build().double()).eval(), torch.randn(shape, dtype=torch.float64)
    plain = Alone(build()).double()  # the same, with the weight that is computed
    plain.load_state_dict({"layer.weight": layer.weight, "layer.bias": layer.bias})
    config = FouraConfig(r=4, target_modules=["layer"], init_weights=False)
    model = get_peft_model(Alone(layer), config, autocast_adapter_dtype=False).eval()
    out = model(x)
    plain.layer.weight.data += model.base_model.model.layer.get_delta_weight("default")
    torch.testing.assert_close(out, plain(x), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="computed from other parameters"):
        model.merge_adapter()
    torch.testing.assert_close(model(x), out)


def test_a_weight_that_is_computed_stops_no_merge_of_others_and_none_halfway() -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"one": nn.Linear(6, 6), "two": nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))})

    model = get_peft_model(net(), FouraConfig(r=4, target_modules=["one"], init_weights=False), adapter_name="a")
    model.add_adapter("b", FouraConfig(r=4, target_modules=["one", "two"], init_weights=False))
    model.base_model.set_adapter(["a", "b"])
    before = model.base_model.model["one"].base_layer.weight.clone()
    with pytest.raises(ValueError, match="computed from other parameters"):
        model.merge_and_unload()
    assert torch.equal(model.base_model.model["one"].base_layer.weight, before) and "two" in str(
        model.targeted_module_names
    )
    merged = model.merge_and_unload(adapter_names=["a"])
    assert not torch.equal(merged["one"].weight, before)


def test_a_weight_that_is_a_buffer_merges() -> None:
    layer = nn.Linear(6, 5)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    x = torch.randn(3, 6)
    model = get_peft_model(Alone(layer), FouraConfig(r=4, target_modules=["layer"], init_weights=False))
    out = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), out, rtol=0, atol=1e-5)


def test_a_subclass_that_computes_as_its_base_is_adapted_and_merges() -> None:
    x = torch.randn(3, 6, 7, 7)
    model = get_peft_model(Alone(Strided(6, 9, 3)), FouraConfig(r=4, target_modules=["layer"], init_weights=False))
    out = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), out, rtol=0, atol=1e-5)


def test_what_cannot_be_adapted_is_refused_in_a_sentence() -> None:
    for module, fields, said in (
        (nn.Conv1d(6, 6, 3, groups=2), {}, "groups=1"),
        (nn.MultiheadAttention(8, 2), {"gate": "adaptive"}, "multiplies by its weights itself"),
        (nn.MultiheadAttention(8, 2, kdim=4), {}, "same width"),
        (nn.LayerNorm(4), {}, "is LayerNorm"),
        (StdConv2d(3, 4, 3), {}, "StdConv2d has a forward of its own"),  # standardises its weight
        (Conv2dSame(3, 4, 3, stride=2), {}, "Conv2dSame has a forward of its own"),  # pads
        (Padding(3, 4, 3), {}, "Padding has a forward of its own"),
    ):
        with pytest.raises(ValueError, match=said):
            get_peft_model(Alone(module), FouraConfig(target_modules=["layer"], **fields))
