"""The adapter's output added to a layer's (paper eq. 5), from folded factors; torch alone.

    y = W0 x + up (g(z) ⊙ z),   z = down x,   down = A F (q, N),  up = s F⁻¹ B (M, q)

q = r · parts: r, or 2r for the DFT (Re z, then Im z). `plain_delta` is this line as it stands; `adapted` computes the
same with the least memory traffic, and is what an eager training step runs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from foura.adapter.gate import Gate, samples_and_tokens

if TYPE_CHECKING:
    from foura.adapter.kernels.gate import GateCall


def plain_delta(x: Tensor, down: Tensor, up: Tensor, rank: int, gate: Gate | None = None) -> Tensor:
    """up · (g ⊙ down x), shape (..., M), in the order of the equation."""
    return linear(gated(linear(x, down), rank, gate), up)


def gated(z_q: Tensor, rank: int, gate: Gate | None) -> Tensor:
    """g(z) ⊙ z for z (..., q); z itself without a gate.

    Of several real parts per rank (DFT: real, imaginary) the gate sees the magnitude, and they share one gate.
    """
    if gate is None:
        return z_q
    if (call := gate.kernel_call(z_q)) is not None:
        return call(z_q)
    if z_q.shape[-1] == rank:
        return z_q * gate(z_q)
    parts = z_q.unflatten(-1, (-1, rank))  # (..., 2, r)
    # CUDA's autocast computes norms in float32, whatever it is given
    magnitude = torch.linalg.vector_norm(parts, dim=-2).to(z_q.dtype)
    return (parts * gate(magnitude).unsqueeze(-2)).flatten(-2)


def masked(up: Tensor, gate: Tensor, rank: int) -> Tensor:
    """up diag(g) for a gate vector g (r,)."""
    return up * gate.to(up.dtype).repeat(up.shape[-1] // rank)


def plain_fold(fold: Callable[[Tensor], Tensor], source: Tensor) -> Tensor:
    """`fold(source)` in float32 or better by torch's operations: a transform's `fold_down` of an A, or its `fold_up` of a B.

    Few numbers, and half precision has no FFT on the CPU. `fold` does it for many layers.
    """
    if torch.is_autocast_enabled(source.device.type):
        with torch.autocast(source.device.type, enabled=False):
            return plain_fold(fold, source)
    return fold(source.to(torch.promote_types(source.dtype, torch.float32)))


def adapted(
    base: Callable[[Tensor], Tensor],
    x: Tensor,
    down: Tensor,
    up: Tensor,
    rank: int,
    gate: Gate | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
    inplace: bool = False,
) -> Tensor:
    """base(x) + plain_delta(x, …) for x (..., N), everything in one dtype.

    PEFT's LoRA allocates three temporaries of the output's size, and two of x's in the backward pass. Here the low-rank
    product is accumulated onto base(x) as it is computed, and in the backward pass onto the gradient of base.

    Args:
        dropout: applied to the adapter's x alone.
        inplace: base is a plain linear layer, whose output and input gradient nothing else holds.
    """
    if dropout is None:
        x, z_q = _Enter.apply(x, down, inplace)
    else:
        z_q = linear(dropout(x), down)
    return _Leave.apply(base(x), gated(z_q, rank, gate), up, inplace)


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, call: "GateCall | None" = None
) -> Tensor:
    """linear(x, weight, bias) + plain_delta(x, …) as one operation in one dtype; W0 is not trained.

    Without a gate computed either through z, or, when there are many ranks, by one product with W0 + ΔW: a step of T tokens
    costs 4 T M N + 6 T q (M + N) multiply-adds the first way and 6 T M N the second.

    Args:
        call: the gate, by kernels.
    """
    if call is not None:
        return _ThroughGate.apply(x, weight, bias, down, up, call, *call.weights)
    (q, N), M = down.shape, up.shape[0]
    # half precision would lose a small ΔW in W0; forming ΔW has to pay over the tokens
    by_z = 3 * q * (N + M) <= N * M or x.dtype not in (torch.float32, torch.float64) or x.numel() < N * N
    return (_ThroughZ if by_z else _ThroughDelta).apply(x, weight, bias, down, up)


class _Enter(torch.autograd.Function):
    """x -> (x, down x), one node for both uses of x, so that their gradients are summed in place.

    `down` is kept on the context, not among the saved tensors: it belongs to the step, whatever the batch size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.down, ctx.inplace = down, inplace
        return x.view_as(x), linear(x, down)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_z: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        grad_z = grad_z.reshape(-1, grad_z.shape[-1])
        grad_down = grad_z.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_down, None
        return accumulated(grad_x, grad_z, ctx.down.T, ctx.inplace), grad_down, None


class _Leave(torch.autograd.Function):
    """(base, u) -> base + up u."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, u: Tensor, up: Tensor, inplace: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.up = up
        out = accumulated(base, u, up, inplace and not base._is_view())
        if out is base:
            ctx.mark_dirty(base)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        (u,) = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_u = (rows @ ctx.up).view_as(u)
        grad_up = (u.reshape(-1, u.shape[-1]).T @ rows).T if ctx.needs_input_grad[2] else None
        return grad, grad_u, grad_up, None


class _ThroughZ(torch.autograd.Function):
    """W0 x + b + up z, z = down x: three products forward and five backward, the last of each accumulated in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        z = linear(x.reshape(-1, x.shape[-1]), down)
        ctx.save_for_backward(x, z)
        # factors belong to the step, whatever the batch size: not among the saved tensors
        ctx.fixed = weight, down, up
        return accumulated(linear(x, weight, bias), z, up, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z = ctx.saved_tensors
        weight, down, up = ctx.fixed
        wants_x, _, wants_bias, wants_down, wants_up = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_z = rows @ up
        return (
            (rows @ weight).addmm_(grad_z, down).view_as(x) if wants_x else None,
            None,
            rows.sum(0) if wants_bias else None,
            grad_z.T @ x.reshape(-1, x.shape[-1]) if wants_down else None,
            (z.T @ rows).T if wants_up else None,
        )


class _ThroughGate(torch.autograd.Function):
    """W0 x + b + up (g(z) ⊙ z): `_ThroughZ` with the gate's kernels between its products."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        call: "GateCall",
        *gate_weights: Tensor,
    ) -> Tensor:
        z, shape = linear(x.reshape(-1, x.shape[-1]), down), samples_and_tokens(x)
        u, kept = call.forward(z, shape)
        ctx.save_for_backward(x, z, u)
        ctx.fixed = weight, down, up, call, kept, shape
        return accumulated(linear(x, weight, bias), u, up, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, u = ctx.saved_tensors
        weight, down, up, call, kept, shape = ctx.fixed
        wants_x, _, wants_bias, wants_down, wants_up, *_ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_z, gate_grads = call.backward(rows @ up, z, kept, shape)
        return (
            (rows @ weight).addmm_(grad_z, down).view_as(x) if wants_x else None,
            None,
            rows.sum(0) if wants_bias else None,
            grad_z.T @ x.reshape(-1, x.shape[-1]) if wants_down else None,
            (u.T @ rows).T if wants_up else None,
            None,
            *gate_grads,
        )


class _ThroughDelta(torch.autograd.Function):
    """(W0 + up down) x + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.fixed = weight, down, up
        return linear(x, torch.addmm(weight, up, down), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        weight, down, up = ctx.fixed
        wants_x, _, wants_bias, wants_down, wants_up = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_delta = rows.T @ x.reshape(-1, x.shape[-1]) if wants_down or wants_up else None
        return (
            (rows @ torch.addmm(weight, up, down)).view_as(x) if wants_x else None,
            None,
            rows.sum(0) if wants_bias else None,
            up.T @ grad_delta if wants_down else None,
            grad_delta @ down.T if wants_up else None,
        )


def accumulated(onto: Tensor, u: Tensor, up: Tensor, inplace: bool) -> Tensor:
    """onto (..., M) + up (M, q) u (..., q); written into `onto` if `inplace` and it is contiguous."""
    u = u if u.dim() == 2 else u.reshape(-1, u.shape[-1])
    if inplace and onto.is_contiguous():
        onto.view(-1, onto.shape[-1]).addmm_(u, up.T)
        return onto
    return torch.addmm(onto.reshape(-1, onto.shape[-1]), u, up.T).view_as(onto)
