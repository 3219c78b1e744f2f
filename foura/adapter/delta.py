"""The adapter's output added to a layer's (paper eq. 5), from folded factors; torch alone.

    y = W0 x + s · up (g(z) ⊙ z),   z = down x,   down = A F (q, N),  up = F⁻¹ B (M, q)

q = r · parts: r, or 2r for the DFT (Re z, then Im z). `plain_delta` is this line as it stands; `adapted` computes the
same with the least memory traffic, and is what an eager training step runs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from foura.adapter.transforms import Transform

GateFunction = Callable[[Tensor], Tensor]  # real rank coordinates (..., r) -> gates that broadcast against them


def plain_delta(
    x: Tensor, down: Tensor, up: Tensor, scaling: float, rank: int, gate: GateFunction | None = None
) -> Tensor:
    """scaling · up · (g ⊙ down x), shape (..., M), in the order of the equation."""
    return linear(gated(linear(x, down), rank, gate) * scaling, up)


def gated(z_q: Tensor, rank: int, gate: GateFunction | None) -> Tensor:
    """g(z) ⊙ z for z (..., q); z itself without a gate.

    The gate sees z before the scaling, as in eq. 5. Of several real parts per rank (DFT: real, imaginary) it sees the
    magnitude, and they share one gate.
    """
    if gate is None:
        return z_q
    if z_q.shape[-1] == rank:
        return z_q * gate(z_q)
    parts = z_q.unflatten(-1, (-1, rank))  # (..., 2, r)
    return (parts * gate(torch.linalg.vector_norm(parts, dim=-2)).unsqueeze(-2)).flatten(-2)


def transformed_delta(
    x: Tensor, A: Tensor, B: Tensor, transform: Transform, scaling: float, gate: GateFunction | None = None
) -> Tensor:
    """`plain_delta` from the unfolded A and B: transforms the activations, cheaper for fewer tokens than ranks."""
    z = transform.analyse(x) @ transform.coefficients(A).T
    if gate is not None:
        z = z * gate(z.abs() if z.is_complex() else z)
    return transform.synthesise((z * scaling) @ transform.coefficients(B).T)


def masked(up: Tensor, gate: Tensor, rank: int) -> Tensor:
    """up diag(g) for a gate vector g (r,)."""
    return up * gate.to(up.dtype).repeat(up.shape[-1] // rank)


def plain_fold(A: Tensor, B: Tensor, transform: Transform) -> tuple[Tensor, Tensor]:
    """(down (q, N), up (M, q)) in float32 or better: few numbers, and half precision has no FFT on the CPU."""
    if torch.is_autocast_enabled(A.device.type):
        with torch.autocast(A.device.type, enabled=False):
            return plain_fold(A, B, transform)
    dtype = torch.promote_types(A.dtype, torch.float32)
    return transform.fold_down(A.to(dtype)), transform.fold_up(B.to(dtype))


def fold(A: Tensor, B: Tensor, transform: Transform) -> tuple[Tensor, Tensor]:
    """`plain_fold` with a backward pass that saves no tensors."""
    down, up = _Fold.apply(A, B, transform)
    return down, up


def adapted(
    base: Callable[[Tensor], Tensor],
    x: Tensor,
    down: Tensor,
    up: Tensor,
    scaling: float,
    rank: int,
    gate: GateFunction | None = None,
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
    return _Leave.apply(base(x), gated(z_q, rank, gate), up, scaling, inplace)


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    transform: Transform,
    scaling: float,
    mask: Tensor | None = None,
) -> Tensor:
    """linear(x, weight, bias) + plain_delta(x, …) without an input-dependent gate, as one operation in one dtype.

    Computed either through z, or, when there are many ranks, by one product with W0 + ΔW: a step of T tokens costs
    4 T M N + 6 T q (M + N) multiply-adds the first way and 6 T M N the second.

    Args:
        mask: a frozen gate (r,).
    """
    q, size = transform.parts * A.shape[0], transform.in_features + transform.out_features
    few_ranks = transform.in_features * transform.out_features >= 3 * q * size
    # half precision would lose a small ΔW in W0; forming ΔW has to pay over the tokens
    by_z = few_ranks or x.dtype not in (torch.float32, torch.float64) or x.numel() < transform.in_features**2
    return _Linear.apply(x, weight, bias, A, B, transform, scaling, mask, by_z)


class _Fold(torch.autograd.Function):
    """Folding is linear, so its gradient is the adjoint map and needs nothing from the forward pass."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, transform: Transform) -> tuple[Tensor, Tensor]:
        ctx.transform, ctx.dtypes = transform, (A.dtype, B.dtype)
        return plain_fold(A, B, transform)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_down: Tensor, grad_up: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_A = ctx.transform.fold_down_adjoint(grad_down)
        grad_B = ctx.transform.fold_up_adjoint(grad_up)
        return grad_A.to(ctx.dtypes[0]), grad_B.to(ctx.dtypes[1]), None


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
        return accumulated(grad_x, grad_z, ctx.down.T, 1.0, ctx.inplace), grad_down, None


class _Leave(torch.autograd.Function):
    """(base, u) -> base + scaling · up u."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, u: Tensor, up: Tensor, scaling: float, inplace: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.up, ctx.scaling = up, scaling
        out = accumulated(base, u, up, scaling, inplace and not base._is_view())
        if out is base:
            ctx.mark_dirty(base)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        (u,) = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_u = _scaled(rows @ ctx.up, ctx.scaling).view_as(u)
        grad_up = _scaled(u.reshape(-1, u.shape[-1]).T @ rows, ctx.scaling).T if ctx.needs_input_grad[2] else None
        return grad, grad_u, grad_up, None, None


class _Linear(torch.autograd.Function):
    """`adapted_linear`: folding, both products and the frozen layer in one node that saves x and z."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        transform: Transform,
        scaling: float,
        mask: Tensor | None,
        by_z: bool,
    ) -> Tensor:
        down, up = (factor.to(x.dtype) for factor in plain_fold(A, B, transform))
        up = up if mask is None else masked(up, mask, A.shape[0])
        # the factors belong to the step, whatever the batch size: not among the saved tensors
        ctx.folded, ctx.fixed = (down, up), (weight, transform, scaling, mask, A.shape[0], (A.dtype, B.dtype))
        if not by_z:
            ctx.save_for_backward(x)
            return linear(x, torch.addmm(weight, up, down, alpha=scaling), bias)
        z = linear(x, down)
        ctx.save_for_backward(x, z)
        return accumulated(linear(x, weight, bias), z, up, scaling, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *z = ctx.saved_tensors
        (down, up), (weight, transform, scaling, mask, rank, dtypes) = ctx.folded, ctx.fixed
        x_rows, rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = None
        if z:
            grad_z = _scaled(rows @ up, scaling)
            grad_up = _scaled(z[0].reshape(-1, z[0].shape[-1]).T @ rows, scaling).T
            grad_down = grad_z.T @ x_rows
            if ctx.needs_input_grad[0]:
                grad_x = (rows @ weight).addmm_(grad_z, down).view_as(x)
        else:
            if ctx.needs_input_grad[0]:
                grad_x = (rows @ torch.addmm(weight, up, down, alpha=scaling)).view_as(x)
            grad_delta = _scaled(rows.T @ x_rows, scaling)
            grad_down, grad_up = up.T @ grad_delta, grad_delta @ down.T
        grad_up = grad_up if mask is None else masked(grad_up, mask, rank)
        wide = torch.promote_types(x.dtype, torch.float32)
        grad_A = transform.fold_down_adjoint(grad_down.to(wide)).to(dtypes[0]) if ctx.needs_input_grad[3] else None
        grad_B = transform.fold_up_adjoint(grad_up.to(wide)).to(dtypes[1]) if ctx.needs_input_grad[4] else None
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, grad_A, grad_B, None, None, None, None


def accumulated(onto: Tensor, u: Tensor, up: Tensor, scaling: float, inplace: bool) -> Tensor:
    """onto (..., M) + scaling · up (M, q) u (..., q); written into `onto` if `inplace` and it is contiguous."""
    u = u.reshape(-1, u.shape[-1])
    if inplace and onto.is_contiguous():
        onto.view(-1, onto.shape[-1]).addmm_(u, up.T, alpha=scaling)
        return onto
    return torch.addmm(onto.reshape(-1, onto.shape[-1]), u, up.T, alpha=scaling).view_as(onto)


def _scaled(tensor: Tensor, scaling: float) -> Tensor:
    """tensor · scaling, in place; alpha = r, the most common choice, makes it 1."""
    return tensor if scaling == 1.0 else tensor.mul_(scaling)
