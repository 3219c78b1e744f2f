"""Unmerged models as graphs for other programs: torch.export with open sizes, ONNX's rules, torch.jit.trace."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from foura import FouraConfig
from foura.adapter.constants import constant

VARIANTS = {
    "dct": {},
    "identity": {"transform": "identity"},
    "random": {"transform": "random"},
    "dft": {"transform": "dft"},
    "frozen": {"gate": "frozen"},
    "token": {"gate": "adaptive", "gate_scope": "token"},
    "sequence": {"gate": "adaptive", "gate_scope": "sequence"},
    "dft sequence": {"transform": "dft", "gate": "adaptive", "gate_scope": "sequence"},
    "sigmoid sequence": {"gate": "adaptive", "gate_scope": "sequence", "gate_form": "sigmoid", "gate_sparsity": 1.0},
    "softmax token": {"gate": "adaptive", "gate_scope": "token", "gate_form": "softmax"},
    "hard sequence": {"gate": "adaptive", "gate_scope": "sequence", "gate_form": "hard"},
    "hard_concrete token": {"gate": "adaptive", "gate_scope": "token", "gate_form": "hard_concrete"},
}
SLOW = ("softmax token", "hard sequence", "hard_concrete token")
every_variant = pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in VARIANTS]
)


class Net(nn.Module):
    """Inputs (S, T, 10), and ids (S, T) for an embedding; odd and even sizes, a fused projection, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(12, 10), nn.Linear(10, 21), nn.Linear(21, 8)
        self.conv = nn.Conv1d(8, 5, 3, padding=1)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        h = self.out(torch.tanh(self.qkv(x + self.embed(ids))))
        return self.conv(h.transpose(1, 2))


def adapted(variant: str) -> nn.Module:
    torch.manual_seed(0)
    fields = {"target_modules": ["embed", "qkv", "out", "conv"], "output_splits": {"qkv": 3}, "init_weights": False}
    return get_peft_model(Net(), FouraConfig(r=4, **fields, **VARIANTS[variant])).eval().base_model.model


def inputs(samples: int, tokens: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(samples)
    return torch.randn(samples, tokens, 10), torch.randint(0, 12, (samples, tokens))


@pytest.fixture
def forgotten(monkeypatch) -> None:
    """No basis has been used before: a graph must not depend on that."""
    import foura.adapter.transforms as module

    for name in ("basis_matrix", "_bin_weights", "_waves"):
        monkeypatch.setattr(module, name, constant(getattr(module, name).__wrapped__))


@every_variant
def test_an_export_leaves_batch_and_length_open(variant) -> None:
    model, Dim = adapted(variant), torch.export.Dim
    sizes = {0: Dim("samples", min=2, max=64), 1: Dim("tokens", min=2, max=512)}
    program = torch.export.export(model, inputs(3, 6), dynamic_shapes=(sizes, sizes))
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(value.is_complex() for value in values if isinstance(value, Tensor))  # ONNX has no complex numbers
    assert len(list(program.parameters())) == len(list(model.parameters()))  # A and B, not factors folded once
    for shape in ((3, 6), (2, 9), (17, 2)):
        with torch.no_grad():
            torch.testing.assert_close(program.module()(*inputs(*shape)), model(*inputs(*shape)), rtol=1e-4, atol=1e-5)


@every_variant
@pytest.mark.parametrize("gradients", [True, False])
def test_a_trace_is_the_model(variant, gradients, forgotten) -> None:
    model = adapted(variant)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(copy.deepcopy(model), inputs(3, 6))
    with torch.no_grad():
        for shape in ((3, 6), (5, 9)):
            torch.testing.assert_close(traced(*inputs(*shape)), model(*inputs(*shape)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["dct", "dft sequence"])
def test_a_trace_has_the_model_s_gradients(variant) -> None:
    model = adapted(variant).train()
    own = copy.deepcopy(model)
    torch.jit.trace(own, inputs(3, 6))(*inputs(5, 9)).square().sum().backward()
    model(*inputs(5, 9)).square().sum().backward()
    for (name, found), expected in zip(own.named_parameters(), model.parameters(), strict=True):
        if expected.requires_grad:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_an_exported_model_has_no_values_of_the_export(forgotten) -> None:
    """The bases that an export uses first are kept for training, so they must be real numbers."""
    model = adapted("random")
    torch.export.export(model, inputs(3, 6))
    model.train()(*inputs(3, 6)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
