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
from foura.adapter.kernels.softmax_gate import softmax_apply, softmax_backward, softmax_partial
from foura.adapter.kernels.token_gate import token_backward, token_forward

PROGRAMS = (
    128  # of a backward pass: each sums the weights' gradients of its tiles; a constant, so that sums do not differ
)

_token_forward, _token_backward = Launcher(token_forward), Launcher(token_backward)
_partial = {"entropy": Launcher(sequence_partial), "softmax": Launcher(softmax_partial)}
_apply = {"entropy": Launcher(sequence_apply), "softmax": Launcher(softmax_apply)}
_backward = {"entropy": Launcher(sequence_backward), "softmax": Launcher(softmax_backward)}
_gate_gradient = Launcher(sequence_gate_gradient)
_token_slopes = {"entropy": TOKEN_SLOPE, "softmax": SEQUENCE_SLOPE}

Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # w_in (h, r), b_in (h,), w_out (r, h), b_out (r,)


def gate_forward(z: Tensor, weights: Weights, form: str, by_token: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(g(z) ⊙ z, what the backward pass needs) for contiguous z (S, T, q).

    The second has `kept_shape`.

    Args:
        form: "entropy" or "softmax".
        mask: (S, T), uint8, 0 for padding; for a sequence gate.
    """
    samples, T, q = z.shape
    hidden, rank = weights[0].shape
    sizes = _sizes(hidden, rank, q)
    out = torch.empty_like(z)
    kept = torch.empty(kept_shape(form, by_token, samples, weights[0]), dtype=torch.float32, device=z.device)
    if by_token:
        tokens = samples * T
        programs = -(-tokens // sizes["BT"])
        _token_forward(programs, (z, out, *weights), (tokens,), {**sizes, "SLOPE": _token_slopes[form], "FORM": form})
        return out, kept
    tiles = -(-T // sizes["BT"])
    width = 3 * rank if form == "entropy" else hidden + 1
    partial = torch.empty((samples, tiles, width), dtype=torch.float32, device=z.device)
    programs, read = samples * tiles, (z, z if mask is None else mask, partial, *weights)
    _partial[form](programs, read, (T, tiles), {**sizes, "MASKED": mask is not None})
    if form == "entropy":
        tensors, sizes = (z, out, partial, _log_counts(z, mask), *kept), _few(sizes)
    else:
        tensors = z, out, partial, kept, *weights
    _apply[form](programs, tensors, (T, tiles), {**sizes, "SLOPE": SEQUENCE_SLOPE})
    return out, kept


def kept_shape(form: str, by_token: bool, samples: int, w_in: Tensor) -> tuple[int, ...]:
    """Shape of what a forward pass keeps for the backward pass, in float32; a token gate keeps nothing.

    entropy     (3, S, r): gates, ln Σ e^score and Σ p ln p
    softmax     (S, h + 1): means of the hidden units, then the number of real tokens
    """
    hidden, rank = w_in.shape
    if by_token:
        return (0,)
    return (3, samples, rank) if form == "entropy" else (samples, hidden + 1)


def _log_counts(z: Tensor, mask: Tensor | None) -> Tensor:
    """ln of the number of real tokens, (S,); of no tokens any number will do."""
    if mask is None:
        return torch.full(z.shape[:1], math.log(z.shape[1] or 1), dtype=torch.float32, device=z.device)
    return mask.sum(1).float().log()


def gate_backward(
    grad: Tensor, z: Tensor, kept: Tensor, weights: Weights, form: str, by_token: bool, mask: Tensor | None
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
        constants = {**sizes, "SLOPE": _token_slopes[form], "FORM": form}
        _token_backward(programs, (z, grad, grad_z, sums, *weights), (tokens, tiles), constants)
        return grad_z, sums.sum(0)
    tiles = -(-T // sizes["BT"])
    partial = torch.empty((samples, tiles, rank), dtype=torch.float32, device=z.device)
    _gate_gradient(samples * tiles, (z, grad, partial), (T, tiles), _few(sizes))
    programs = min(PROGRAMS, samples * tiles)
    sums = torch.empty((programs, length), dtype=torch.float32, device=z.device)
    keeps = kept if form == "entropy" else (kept,)
    tensors = z, grad, grad_z, z if mask is None else mask, partial, *keeps, sums, *weights
    constants = {**sizes, "SLOPE": SEQUENCE_SLOPE, "MASKED": mask is not None}
    _backward[form](programs, tensors, (T, tiles, samples), constants)
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
