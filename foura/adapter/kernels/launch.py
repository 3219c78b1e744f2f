"""Launching the gate's kernels: tile sizes, grids and buffers."""

import math
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from foura.adapter.entropy import SEQUENCE_SLOPE, TOKEN_SLOPE
from foura.adapter.kernels.launcher import Launcher
from foura.adapter.kernels.sequence_gate import (
    sequence_apply,
    sequence_backward,
    sequence_gate_gradient,
    sequence_partial,
)
from foura.adapter.kernels.token_gate import token_backward, token_forward

PROGRAMS = (
    128  # of a backward pass: each sums the weights' gradients of its tiles; a constant, so that sums do not differ
)

_token_forward, _token_backward = Launcher(token_forward), Launcher(token_backward)
_partial, _apply = Launcher(sequence_partial), Launcher(sequence_apply)
_gate_gradient, _backward = Launcher(sequence_gate_gradient), Launcher(sequence_backward)

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
    hidden, rank = weights[0].shape
    sizes = _sizes(hidden, rank, q)
    out = torch.empty_like(z)
    if by_token:
        tokens = samples * T
        grid = -(-tokens // sizes["BT"]), 1
        _token_forward(grid, (z, out, *weights), (tokens,), {**sizes, "SLOPE": TOKEN_SLOPE})
        return out, z.new_empty(0, dtype=torch.float32)
    tiles = -(-T // sizes["BT"])
    partial = torch.empty((samples, tiles, 3, rank), dtype=torch.float32, device=z.device)
    kept = torch.empty((3, samples, rank), dtype=torch.float32, device=z.device)
    if log_counts is None:
        log_counts = torch.full((samples,), math.log(T), dtype=torch.float32, device=z.device)
    masked, grid = mask is not None, (samples, tiles)
    _partial(grid, (z, z if mask is None else mask, partial, *weights), (T, tiles), {**sizes, "MASKED": masked})
    _apply(grid, (z, out, partial, log_counts, *kept), (T, tiles), {**_few(sizes), "SLOPE": SEQUENCE_SLOPE})
    return out, kept


def gate_backward(
    grad: Tensor, z: Tensor, kept: Tensor, weights: Weights, by_token: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of z, and of the weights in float32 as one vector: w_in, b_in, w_out, b_out."""
    samples, T, q = z.shape
    hidden, rank = weights[0].shape
    sizes = _sizes(hidden, rank, q)
    length = 2 * hidden * rank + hidden + rank
    grad_z = torch.empty_like(z)
    if by_token:
        tokens = samples * T
        tiles = -(-tokens // sizes["BT"])
        programs = min(PROGRAMS, tiles)
        sums = torch.empty((programs, length), dtype=torch.float32, device=z.device)
        tensors = z, grad, grad_z, sums, *weights
        _token_backward((programs, 1), tensors, (tokens, tiles), {**sizes, "SLOPE": TOKEN_SLOPE})
        return grad_z, sums.sum(0)
    tiles = -(-T // sizes["BT"])
    partial = torch.empty((samples, tiles, rank), dtype=torch.float32, device=z.device)
    _gate_gradient((samples, tiles), (z, grad, partial), (T, tiles), _few(sizes))
    programs = min(PROGRAMS, samples * tiles)
    sums = torch.empty((programs, length), dtype=torch.float32, device=z.device)
    tensors = z, grad, grad_z, z if mask is None else mask, partial, *kept, sums, *weights
    constants = {**sizes, "SLOPE": SEQUENCE_SLOPE, "MASKED": mask is not None}
    _backward((programs, 1), tensors, (T, tiles, samples), constants)
    return grad_z, sums.sum(0)


@lru_cache
def _sizes(hidden: int, rank: int, q: int) -> dict[str, Any]:
    """The kernels' compile-time sizes, in their order. Tiles shrink with the rank: a tile has to fit into registers."""
    padded = max(16, triton.next_power_of_2(rank))
    return {
        "R": rank,
        "H": hidden,
        "RP": padded,
        "HP": max(16, triton.next_power_of_2(hidden)),
        "BT": max(16, min(64, 4096 // padded)),
        "PARTS": q // rank,
    }


def _few(sizes: dict[str, Any]) -> dict[str, Any]:
    """Of kernels that do not compute scores."""
    return {name: sizes[name] for name in ("R", "RP", "BT", "PARTS")}
