"""The fast path is the paper's equation: folded = textbook, in float64 and float32, values and gradients."""

import itertools

import pytest
import torch
from torch import nn

from foura.adapter import transforms
from foura.adapter.config import FouraConfig
from foura.adapter.linear import Linear
from foura.adapter.transforms import DCT, MATRIX_LIMIT, TRANSFORMS, RandomBasis
from tests.reference import foura as textbook

SHAPES = {
    "square": (12, 12, 1),
    "wide": (10, 21, 1),
    "narrow": (21, 10, 1),
    "split": (12, 30, 3),
    "split even": (9, 24, 3),
}
GATES = (("none", "sequence"), ("adaptive", "sequence"), ("adaptive", "token"), ("frozen", "sequence"))


def make_layer(transform, gate="none", scope="sequence", shape=(12, 12, 1), r=4, dtype=torch.float64) -> Linear:
    n, m, splits = shape
    config = FouraConfig(r=r, foura_alpha=3, transform=transform, gate=gate, gate_scope=scope, transform_seed=5)
    layer = Linear(nn.Linear(n, m), "default", config, r, 3.0, splits).to(dtype)
    nn.init.normal_(layer.foura_B["default"])
    if gate == "frozen":
        layer.foura_gate_mask["default"] = torch.tensor([True, False, True, True])
    if gate == "adaptive":
        for parameter in layer.foura_gate["default"].parameters():
            nn.init.normal_(parameter)  # gates far from open, so that a gate left out is seen
    return layer


def textbook_output(layer: Linear, x: torch.Tensor, splits: int) -> torch.Tensor:
    gate = None
    if "default" in layer.foura_gate:
        net = layer.foura_gate["default"]
        twin = textbook.sequence_gate if net.scope == "sequence" else textbook.token_gate
        gate = lambda u: twin(u, net.weight_in, net.bias_in, net.weight_out, net.bias_out)  # noqa: E731
    elif "default" in layer.foura_gate_mask:
        gate = lambda u: layer.foura_gate_mask["default"].to(u.dtype)  # noqa: E731
    random_basis = lambda n: RandomBasis.basis(n, 5)  # noqa: E731
    A, B = layer.foura_A["default"], layer.foura_B["default"]
    (transform,) = (name for name, kind in TRANSFORMS.items() if type(layer.transform["default"]) is kind)
    delta = textbook.delta(x, A, B, layer.out_features, transform, layer.scaling["default"], splits, gate, random_basis)
    return layer.base_layer(x) + delta


@pytest.mark.parametrize("tokens", [(3, 5), (1, 2)], ids=["folded", "fewer tokens than ranks"])
@pytest.mark.parametrize(("transform", "gate", "shape"), list(itertools.product(TRANSFORMS, GATES, SHAPES)))
def test_fast_is_the_textbook_in_float64(transform, gate, shape, tokens) -> None:
    layer = make_layer(transform, *gate, SHAPES[shape])
    x = torch.randn(*tokens, SHAPES[shape][0], dtype=torch.float64, requires_grad=True)
    fast, slow = layer(x), textbook_output(layer, x, SHAPES[shape][2])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    assert (slow - layer.base_layer(x)).abs().max() > 0.1  # the adapter does something, so equality says something
    weights = torch.randn_like(fast)
    inputs = [x, *[p for p in layer.parameters() if p.requires_grad]]
    fast_grads = torch.autograd.grad((fast * weights).sum(), inputs)
    slow_grads = torch.autograd.grad((slow * weights).sum(), inputs)
    for one, other in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), slow, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("transform", "gate"), list(itertools.product(TRANSFORMS, GATES)))
def test_folded_is_the_textbook_in_float32(transform, gate) -> None:
    layer = make_layer(transform, *gate, SHAPES["split"], dtype=torch.float32)
    x = torch.randn(3, 5, 12)
    fast = layer(x).double()
    slow = textbook_output(layer.double(), x.double(), 3)
    assert (fast - slow).norm() / slow.norm() < 1e-5


@pytest.mark.parametrize("length", [MATRIX_LIMIT + 1, MATRIX_LIMIT + 6])
def test_a_long_dct_by_fft_is_the_matrix(length) -> None:
    rows = torch.randn(3, length, dtype=torch.float64)
    matrix = DCT.basis(length, 0)
    transform = DCT(length, length)
    torch.testing.assert_close(transform.fold_down(rows), rows @ matrix, rtol=0, atol=1e-10)
    torch.testing.assert_close(transform.forward(rows), rows @ matrix.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("limit", [MATRIX_LIMIT, 2], ids=["matrix", "fft"])
@pytest.mark.parametrize(("transform", "shape"), list(itertools.product(TRANSFORMS, SHAPES)))
def test_the_adjoints_are_the_gradients_of_folding(transform, shape, limit, monkeypatch) -> None:
    monkeypatch.setattr(transforms, "MATRIX_LIMIT", limit)
    n, m, splits = SHAPES[shape]
    F = TRANSFORMS[transform](n, m, splits, seed=5)
    A = torch.randn(F.shape_A(4), dtype=torch.float64, requires_grad=True)
    B = torch.randn(F.shape_B(4), dtype=torch.float64, requires_grad=True)
    down, up = F.fold_down(A), F.fold_up(B)
    grad_down, grad_up = torch.randn_like(down), torch.randn_like(up)
    grad_A, grad_B = torch.autograd.grad([down, up], [A, B], [grad_down, grad_up])
    torch.testing.assert_close(F.fold_down_adjoint(grad_down), grad_A, rtol=0, atol=1e-12)
    torch.testing.assert_close(F.fold_up_adjoint(grad_up), grad_B, rtol=0, atol=1e-12)


@pytest.mark.parametrize("transform", ["dct", "random"])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
def test_bases_are_orthonormal(transform, length) -> None:
    F = TRANSFORMS[transform].basis(length, 3)
    torch.testing.assert_close(F @ F.T, torch.eye(length, dtype=torch.float64), rtol=0, atol=1e-12)


def test_dct_is_the_dct_by_definition() -> None:
    torch.testing.assert_close(DCT.basis(13, 0), textbook.dct_matrix(13))


def test_random_bases_differ_by_seed() -> None:
    one, two = (RandomBasis.basis(8, seed) for seed in (0, 1))
    assert (one - two).abs().max() > 0.1


@pytest.mark.parametrize("optimise", ["sgd", "sgd with weight decay"])
def test_ungated_dct_under_sgd_is_lora(optimise) -> None:
    """Paper form, ungated, is LoRA in a rotated basis; plain SGD does not see rotations."""
    torch.manual_seed(1)
    n, m, r = 12, 9, 3
    foura = make_layer("dct", shape=(n, m, 1), r=r)
    F_in, F_out = textbook.dct_matrix(n), textbook.dct_matrix(m)
    lora_A = (foura.foura_A["default"].detach() @ F_in).requires_grad_()
    lora_B = (F_out.T @ foura.foura_B["default"].detach()).requires_grad_()
    decay = 0.1 if "decay" in optimise else 0.0
    one = torch.optim.SGD([foura.foura_A["default"], foura.foura_B["default"]], lr=0.05, weight_decay=decay)
    two = torch.optim.SGD([lora_A, lora_B], lr=0.05, weight_decay=decay)
    start = foura.get_delta_weight("default").detach().clone()
    for _ in range(50):
        x, y = torch.randn(8, n, dtype=torch.float64), torch.randn(8, m, dtype=torch.float64)
        one.zero_grad()
        (foura(x) - y).square().mean().backward()
        one.step()
        two.zero_grad()
        (foura.base_layer(x) + (x @ lora_A.T) @ lora_B.T * (3.0 / r) - y).square().mean().backward()
        two.step()
    delta = foura.get_delta_weight("default").detach()
    assert (delta - start).norm() > 0.1 * start.norm()  # it has moved
    torch.testing.assert_close(delta, (3.0 / r) * (lora_B @ lora_A).detach(), rtol=0, atol=1e-10)


def test_dft_operator_has_twice_the_rank() -> None:
    assert torch.linalg.matrix_rank(make_layer("dft", shape=(24, 20, 1), r=3).get_delta_weight("default")) == 6
