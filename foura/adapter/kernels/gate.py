"""g(z) ⊙ z by kernels, for eager PyTorch (`GateCall`) and for compiled graphs (the operator foura::gate)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors
from torch.autograd.function import once_differentiable

from foura.adapter.kernels.launch import Weights, gate_backward, gate_forward, kept_shape


class GateCall:
    """One call of a gate.

    Args:
        form: "entropy" or "softmax".
        mask: (S, T), true for real tokens, with at least one in each sample; for a sequence gate that sees padding.
    """

    def __init__(self, weights: Weights, form: str, by_token: bool, mask: Tensor | None = None) -> None:
        self.weights, self.form, self.by_token, self.mask = weights, form, by_token, mask

    def __call__(self, z: Tensor) -> Tensor:
        """g(z) ⊙ z, with gradients."""
        if torch.compiler.is_compiling():
            out, _ = _gate(_three_axes(z), *self.weights, self.form, self.by_token, self._padding())
            return out.view_as(z)
        return _Gated.apply(z, self, *self.weights)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(g(z) ⊙ z, what `backward` needs)."""
        out, kept = gate_forward(_three_axes(z), self.weights, self.form, self.by_token, self._padding())
        return out.view(z.shape), kept

    def backward(self, grad: Tensor, z: Tensor, kept: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradients of z and of the weights."""
        grad_z, flat = gate_backward(
            _three_axes(grad), _three_axes(z), kept, self.weights, self.form, self.by_token, self._padding()
        )
        return grad_z.view(z.shape), _cut(flat, self.weights)

    def _padding(self) -> Tensor | None:
        return None if self.mask is None else self.mask.to(torch.uint8).contiguous()


def _three_axes(z: Tensor) -> Tensor:
    """(S, T, q), contiguous: all axes between the first and the last are tokens."""
    if z.dim() == 3 and z.is_contiguous():
        return z
    tokens = math.prod(z.shape[1:-1])  # not -1, which says nothing about an empty batch
    return z.reshape(z.shape[0] if z.dim() > 1 else 1, tokens, z.shape[-1]).contiguous()


def _cut(flat: Tensor, weights: Weights) -> list[Tensor]:
    return list(_unflatten_dense_tensors(flat.to(weights[0].dtype), weights))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, call: GateCall, *weights: Tensor) -> Tensor:
        out, kept = call.forward(z)
        ctx.save_for_backward(z)
        ctx.call, ctx.kept = call, kept
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        grad_z, grads = ctx.call.backward(grad, z, ctx.kept)
        return grad_z, None, *grads


# -- for compiled graphs


@torch.library.custom_op("foura::gate", mutates_args=())
def _gate(
    z: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    form: str,
    by_token: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return gate_forward(z.contiguous(), (w_in, b_in, w_out, b_out), form, by_token, mask)


@_gate.register_fake
def _(z, w_in, b_in, w_out, b_out, form, by_token, mask):
    kept = kept_shape(form, by_token, z.shape[0], w_in)
    return torch.empty_like(z, memory_format=torch.contiguous_format), z.new_empty(kept, dtype=torch.float32)


@torch.library.custom_op("foura::gate_backward", mutates_args=())
def _gate_backward(
    grad: Tensor,
    z: Tensor,
    kept: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    form: str,
    by_token: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return gate_backward(grad.contiguous(), z.contiguous(), kept, (w_in, b_in, w_out, b_out), form, by_token, mask)


@_gate_backward.register_fake
def _(grad, z, kept, w_in, b_in, w_out, b_out, form, by_token, mask):
    length = w_in.numel() + b_in.numel() + w_out.numel() + b_out.numel()
    return torch.empty_like(z, memory_format=torch.contiguous_format), z.new_empty(length, dtype=torch.float32)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    z, w_in, b_in, w_out, b_out, form, by_token, mask = inputs
    ctx.save_for_backward(z, output[1], w_in, b_in, w_out, b_out, mask)
    ctx.form, ctx.by_token = form, by_token


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    z, kept, *weights, mask = ctx.saved_tensors
    grad_z, flat = _gate_backward(grad, z, kept, *weights, ctx.form, ctx.by_token, mask)
    return grad_z, *_cut(flat, tuple(weights)), None, None, None


_gate.register_autograd(_backward, setup_context=_setup)
