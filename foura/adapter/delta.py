"""The adapter's output on a layer's input (paper eq. 5), from folded factors; torch alone.

shapes   x (..., N) · down = A F (q, N) · up = F⁻¹ B (M, q) · q = r, or 2r for the DFT (Re z, then Im z)
"""

from collections.abc import Callable

import torch
from torch import Tensor

from foura.adapter.transforms import fold_down, fold_up


def fold(
    A: Tensor, B: Tensor, transform: str, in_features: int, out_features: int, splits: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The folded factors (down (q, N), up (M, q)) with ΔW = up · down, in float32 or better.

    Half precision is folded in float32: it costs nothing (r x N numbers) and the FFT has no half kernels on the CPU.
    """
    dtype = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(A.device.type, enabled=False):
        down_qN = fold_down(A.to(dtype), transform, in_features, seed)
        up_Mq = fold_up(B.to(dtype), transform, out_features, splits, seed)
    return down_qN, up_Mq


def low_rank_delta(
    x: Tensor, down: Tensor, up: Tensor, scaling: float, rank: int, gate: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """scaling · up · (g ⊙ down x), shape (..., M); g = gate(z), or 1 everywhere without a gate.

    The gate sees z = A F x before the scaling, as in eq. 5, and for the DFT its magnitude: real and imaginary part of
    one rank share a gate.
    """
    z_q = torch.nn.functional.linear(x, down)
    if gate is None:
        return torch.nn.functional.linear(z_q * scaling, up)
    parts = z_q.unflatten(-1, (-1, rank))  # (..., 1 or 2, r)
    u_r = parts.squeeze(-2) if parts.shape[-2] == 1 else torch.linalg.vector_norm(parts, dim=-2)
    gated = parts * (gate(u_r) * scaling).unsqueeze(-2)
    return torch.nn.functional.linear(gated.flatten(-2), up)


def delta_weight(down: Tensor, up: Tensor, scaling: float, rank: int, gate: Tensor | None = None) -> Tensor:
    """ΔW (M, N) = scaling · up diag(g) down for a fixed gate vector g (r,); g = 1 without one."""
    if gate is not None:
        up = up * gate.to(up.dtype).repeat(up.shape[-1] // rank)
    return scaling * (up @ down)
