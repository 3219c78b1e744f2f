"""Launching the gate's kernels: tile sizes, grids and buffers."""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from foura.adapter.entropy import SEQUENCE_SLOPE, TOKEN_SLOPE
from foura.adapter.kernels import sequence_gate, token_gate

PROGRAMS = (
    128  # of a backward pass: each sums the weights' gradients of its tiles; a constant, so that sums do not differ
)

Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # w_in (h, r), b_in (h,), w_out (r, h), b_out (r,)


def gate_forward(
    z: Tensor, weights: Weights, by_token: bool, mask: Tensor | None, log_counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(g(z) ⊙ z, what the backward pass needs) for contiguous z (S, T, q).

    Args:
        mask: (S, T), uint8, 0 for padding. log_counts: (S,), ln of the number of real tokens; both for a sequence gate.

    Returns:
        the second is (3, S, r): gates, ln Σ e^score and Σ p ln p; empty for a token gate.
    """
    samples, T, q = z.shape
    sizes = _sizes(weights, q)
    out, rank = torch.empty_like(z), sizes["R"]
    if by_token:
        tokens = samples * T
        grid = (triton.cdiv(tokens, sizes["BT"]),)
        token_gate.token_forward[grid](z, out, *weights, tokens, **sizes, SLOPE=TOKEN_SLOPE)
        return out, z.new_empty(0, dtype=torch.float32)
    tiles = triton.cdiv(T, sizes["BT"])
    partial = torch.empty((samples, tiles, 3, rank), dtype=torch.float32, device=z.device)
    kept = torch.empty((3, samples, rank), dtype=torch.float32, device=z.device)
    if log_counts is None:
        log_counts = torch.full((samples,), math.log(T), dtype=torch.float32, device=z.device)
    masked = mask is not None
    sequence_gate.sequence_partial[(samples, tiles)](
        z, mask if masked else z, partial, *weights, T, tiles, **sizes, MASKED=masked
    )
    few = {name: sizes[name] for name in ("R", "RP", "BT", "PARTS")}
    sequence_gate.sequence_apply[(samples, tiles)](
        z, out, partial, log_counts, *kept, T, tiles, **few, SLOPE=SEQUENCE_SLOPE
    )
    return out, kept


def gate_backward(
    grad: Tensor, z: Tensor, kept: Tensor, weights: Weights, by_token: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of z, and of the weights in float32 as one vector: w_in, b_in, w_out, b_out."""
    samples, T, q = z.shape
    sizes = _sizes(weights, q)
    rank, length = sizes["R"], sum(weight.numel() for weight in weights)
    grad_z = torch.empty_like(z)
    if by_token:
        tokens = samples * T
        tiles = triton.cdiv(tokens, sizes["BT"])
        sums = torch.empty((min(PROGRAMS, tiles), length), dtype=torch.float32, device=z.device)
        token_gate.token_backward[(len(sums),)](
            z, grad, grad_z, sums, *weights, tokens, tiles, **sizes, SLOPE=TOKEN_SLOPE
        )
        return grad_z, sums.sum(0)
    tiles = triton.cdiv(T, sizes["BT"])
    partial = torch.empty((samples, tiles, rank), dtype=torch.float32, device=z.device)
    few = {name: sizes[name] for name in ("R", "RP", "BT", "PARTS")}
    sequence_gate.sequence_gate_gradient[(samples, tiles)](z, grad, partial, T, tiles, **few)
    sums = torch.empty((min(PROGRAMS, samples * tiles), length), dtype=torch.float32, device=z.device)
    masked = mask is not None
    sequence_gate.sequence_backward[(len(sums),)](
        z, grad, grad_z, mask if masked else z, partial, *kept, sums, *weights, T, tiles, samples,
        **sizes, SLOPE=SEQUENCE_SLOPE, MASKED=masked,
    )  # fmt: skip
    return grad_z, sums.sum(0)


def _sizes(weights: Weights, q: int) -> dict[str, Any]:
    """The kernels' compile-time sizes. Tiles shrink with the rank: a tile has to fit into registers."""
    hidden, rank = weights[0].shape
    padded = max(16, triton.next_power_of_2(rank))
    return {
        "R": rank,
        "H": hidden,
        "RP": padded,
        "HP": max(16, triton.next_power_of_2(hidden)),
        "BT": max(16, min(64, 4096 // padded)),
        "PARTS": q // rank,
    }
