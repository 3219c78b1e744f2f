"""Adapters inside nn.TransformerEncoder act in evaluation too, where torch has a fast path that calls no layer."""

import copy
import pickle

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

from foura import FouraConfig

TARGETS = {"feed forward": ["linear1", "linear2"], "attention": ["self_attn"], "one layer": ["layers.1.linear2"]}


@pytest.fixture
def base() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).double().eval()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 5, 16, dtype=torch.float64)


def config(targets: str = "feed forward") -> FouraConfig:
    return FouraConfig(r=4, foura_alpha=16, target_modules=TARGETS[targets], init_weights=False)


PADDING = torch.arange(5) >= torch.tensor([[5], [3], [2]])


def real(y: Tensor) -> Tensor:
    return y[~PADDING]  # the fast path has zeros at padding


@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize("targets", TARGETS)
def test_evaluation_is_what_is_trained(base, x, targets, padding) -> None:
    model = get_peft_model(copy.deepcopy(base), config(targets))
    trained = real(model.train()(x, src_key_padding_mask=padding))
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(real(model.eval()(x, src_key_padding_mask=padding)), trained, rtol=0, atol=1e-10)
            unadapted = real(base(x, src_key_padding_mask=padding))
            assert not torch.allclose(trained, unadapted, atol=1e-2)
            with model.disable_adapter():
                plain = real(model(x, src_key_padding_mask=padding))
            torch.testing.assert_close(plain, unadapted, rtol=0, atol=1e-10)
    model.requires_grad_(False)  # as good as no gradients for the fast path
    torch.testing.assert_close(real(model(x, src_key_padding_mask=padding)), trained, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("targets", TARGETS)
def test_merged_is_unmerged(base, x, targets) -> None:
    model = get_peft_model(base, config(targets)).eval()
    adapted = real(model(x, src_key_padding_mask=PADDING))
    model.merge_adapter()
    torch.testing.assert_close(real(model(x, src_key_padding_mask=PADDING)), adapted, rtol=0, atol=1e-10)
    model.unmerge_adapter()
    torch.testing.assert_close(
        real(model.merge_and_unload()(x, src_key_padding_mask=PADDING)), adapted, rtol=0, atol=1e-10
    )


def test_a_single_encoder_layer_without_the_wrapper(base, x) -> None:
    layer = inject_adapter_in_model(config(), nn.Sequential(base.layers[0]))
    trained = layer.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), trained, rtol=0, atol=1e-10)


def test_an_unloaded_model_is_as_it_was(base, x) -> None:
    before = copy.deepcopy(base)
    model = get_peft_model(base, config())
    model.add_adapter("other", config("attention"))
    bare = model.unload().eval()
    with torch.no_grad():
        assert torch.equal(bare(x, src_key_padding_mask=PADDING), before(x, src_key_padding_mask=PADDING))
    assert bare.use_nested_tensor is before.use_nested_tensor is True
    assert b"foura" not in pickle.dumps(bare)


def test_an_adapter_that_the_attention_passes_by_is_said(base) -> None:
    targets = FouraConfig(target_modules=["linear1", "out_proj"])
    with pytest.warns(UserWarning, match=r"'layers.0.self_attn.out_proj' does nothing"):
        get_peft_model(base, targets)
