"""g(z) ⊙ z by kernels, for eager PyTorch (`GateCall`) and for compiled graphs (the operator foura::gate)."""

from typing import Any

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors
from torch.autograd.function import once_differentiable

from foura.adapter.gate import samples_and_tokens
from foura.adapter.kernels.launch import Shape, Weights, gate_backward, gate_forward, kept_shape
from foura.adapter.operator import operator


class GateCall:
    """One call of a gate.

    Args:
        form: "entropy" or "softmax".
        mask: `real_tokens`, for a sequence gate that sees padding.
    """

    def __init__(self, weights: Weights, form: str, by_token: bool, mask: Tensor | None = None) -> None:
        self.weights, self.form, self.by_token, self.mask = weights, form, by_token, mask

    def __call__(self, z: Tensor) -> Tensor:
        """g(z) ⊙ z, with gradients."""
        if torch.compiler.is_compiling():
            mask = None if self.mask is None else self.mask.to(torch.uint8)
            out, _ = gate(z.reshape(*samples_and_tokens(z), z.shape[-1]), *self.weights, self.form, self.by_token, mask)
            return out.view_as(z)
        return _Gated.apply(z, self, *self.weights)

    def forward(self, z: Tensor, shape: Shape) -> tuple[Tensor, Tensor | None]:
        """(g(z) ⊙ z, what `backward` needs) of contiguous z (S · T, q)."""
        return gate_forward(z, shape, self.weights, self.form, self.by_token, self._padding())

    def backward(self, grad: Tensor, z: Tensor, kept: Tensor | None, shape: Shape) -> tuple[Tensor, list[Tensor]]:
        """Gradients of z (S · T, q) and of the weights."""
        padding = self._padding()
        grad_z, flat = gate_backward(grad, z, kept, shape, self.weights, self.form, self.by_token, padding)
        return grad_z, _cut(flat, self.weights)

    def _padding(self) -> Tensor | None:
        return None if self.mask is None else self.mask.view(torch.uint8)  # the same bytes


def _cut(flat: Tensor, weights: Weights) -> list[Tensor]:
    return list(_unflatten_dense_tensors(flat.to(weights[0].dtype), weights))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, call: GateCall, *weights: Tensor) -> Tensor:
        shape = samples_and_tokens(z)
        ctx.save_for_backward(z)
        out, kept = call.forward(_rows(z, shape), shape)
        ctx.fixed = call, kept, shape
        return out.view(z.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        call, kept, shape = ctx.fixed
        grad_z, grads = call.backward(_rows(grad, shape), _rows(z, shape), kept, shape)
        return grad_z.view(z.shape), None, *grads


def _rows(z: Tensor, shape: Shape) -> Tensor:
    return z.reshape(shape[0] * shape[1], z.shape[-1]).contiguous()


# -- for compiled graphs


@operator
def gate(
    z: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    form: str,
    by_token: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    z, weights = z.contiguous(), (w_in, b_in, w_out, b_out)
    out, kept = gate_forward(z, samples_and_tokens(z), weights, form, by_token, mask)
    return out, z.new_empty(0, dtype=torch.float32) if kept is None else kept


@torch.library.register_fake("foura::gate")
def _(z, w_in, b_in, w_out, b_out, form, by_token, mask):
    kept = 0 if by_token else kept_shape(form, z.shape[0], w_in)
    return torch.empty_like(z, memory_format=torch.contiguous_format), z.new_empty(kept, dtype=torch.float32)


@operator
def gate_gradient(
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
    shape, weights = samples_and_tokens(z), (w_in, b_in, w_out, b_out)
    return gate_backward(grad.contiguous(), z.contiguous(), kept, shape, weights, form, by_token, mask)


@torch.library.register_fake("foura::gate_gradient")
def _(grad, z, kept, w_in, b_in, w_out, b_out, form, by_token, mask):
    length = w_in.numel() + b_in.numel() + w_out.numel() + b_out.numel()
    return torch.empty_like(z, memory_format=torch.contiguous_format), z.new_empty(length, dtype=torch.float32)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    z, w_in, b_in, w_out, b_out, form, by_token, mask = inputs
    ctx.save_for_backward(z, output[1], w_in, b_in, w_out, b_out, mask)
    ctx.form, ctx.by_token = form, by_token


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    z, kept, *weights, mask = ctx.saved_tensors
    grad_z, flat = gate_gradient(grad, z, kept, *weights, ctx.form, ctx.by_token, mask)
    return grad_z, *_cut(flat, tuple(weights)), None, None, None


torch.library.register_autograd("foura::gate", _backward, setup_context=_setup)
