"""Launching the gate's kernels: tile sizes, grids and buffers."""

from functools import lru_cache
from typing import Any, NamedTuple

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
from foura.adapter.kernels.short_gate import (
    entropy_short_backward,
    entropy_short_forward,
    softmax_short_backward,
    softmax_short_forward,
)
from foura.adapter.kernels.softmax_gate import softmax_apply, softmax_backward, softmax_partial
from foura.adapter.kernels.token_gate import token_backward, token_forward

PROGRAMS = (
    128  # of a backward pass: each sums the weights' gradients of its tiles; a constant, so that sums do not differ
)
SHORT = 4  # tiles of a sample that one program takes; a constant, too

_token_forward, _token_backward = Launcher(token_forward), Launcher(token_backward)
_partial = {"entropy": Launcher(sequence_partial), "softmax": Launcher(softmax_partial)}
_apply = {"entropy": Launcher(sequence_apply), "softmax": Launcher(softmax_apply)}
_backward = {"entropy": Launcher(sequence_backward), "softmax": Launcher(softmax_backward)}
_short_forward = {"entropy": Launcher(entropy_short_forward), "softmax": Launcher(softmax_short_forward)}
_short_backward = {"entropy": Launcher(entropy_short_backward), "softmax": Launcher(softmax_short_backward)}
_gate_gradient = Launcher(sequence_gate_gradient)
_token_slopes = {"entropy": TOKEN_SLOPE, "softmax": SEQUENCE_SLOPE}

Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # w_in (h, r), b_in (h,), w_out (r, h), b_out (r,)
Shape = tuple[int, int]  # samples, and tokens of each


def gate_forward(
    z: Tensor, shape: Shape, weights: Weights, form: str, by_token: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(g(z) ⊙ z, what the backward pass needs) for contiguous z (S, T, q), or (S · T, q).

    The second has `kept_shape`, and is None for a token gate.

    Args:
        form: "entropy" or "softmax".
        mask: (S, T), uint8, 0 for padding; for a sequence gate.
    """
    (samples, T), (hidden, rank) = shape, weights[0].shape
    constants = _constants(form, by_token, mask is not None, hidden, rank, z.shape[-1])
    out = torch.empty_like(z)
    if by_token:
        tokens = samples * T
        _token_forward(-(-tokens // constants.tile), (z, out, *weights), (tokens,), constants.first)
        return out, None
    tiles = -(-T // constants.tile)
    kept = torch.empty(kept_shape(form, samples, weights[0]), dtype=torch.float32, device=z.device)
    padding = z if mask is None else mask
    if tiles <= SHORT:
        programs = samples if tiles else 0
        _short_forward[form](programs, (z, out, padding, kept, *weights), (T, tiles), constants.backward)
        return out, kept
    width = 3 * rank + 1 if form == "entropy" else hidden + 1
    partial = torch.empty((samples, tiles, width), dtype=torch.float32, device=z.device)
    programs, read = samples * tiles, (z, padding, partial, *weights)
    _partial[form](programs, read, (T, tiles), constants.first)
    tensors = z, out, partial, kept, *(() if form == "entropy" else weights)
    _apply[form](programs, tensors, (T, tiles), constants.apply)
    return out, kept


def kept_shape(form: str, samples: int, w_in: Tensor) -> tuple[int, ...]:
    """Shape of what the forward pass of a sequence gate keeps for the backward pass, in float32.

    entropy     (S, 3, r): gates, ln Σ e^score and Σ p ln p
    softmax     (S, h + 1): means of the hidden units, then the number of real tokens
    """
    hidden, rank = w_in.shape
    return (samples, 3, rank) if form == "entropy" else (samples, hidden + 1)


def gate_backward(
    grad: Tensor,
    z: Tensor,
    kept: Tensor | None,
    shape: Shape,
    weights: Weights,
    form: str,
    by_token: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of z, and of the weights in float32 as one vector: w_in, b_in, w_out, b_out."""
    (samples, T), (hidden, rank) = shape, weights[0].shape
    constants = _constants(form, by_token, mask is not None, hidden, rank, z.shape[-1])
    length = 2 * hidden * rank + hidden + rank
    grad_z = torch.empty_like(z)
    if by_token:
        tokens = samples * T
        tiles = -(-tokens // constants.tile)
        programs = min(PROGRAMS, tiles)
        sums = torch.empty((programs, length), dtype=torch.float32, device=z.device)
        _token_backward(programs, (z, grad, grad_z, sums, *weights), (tokens, tiles), constants.backward)
        return grad_z, sums.sum(0)
    tiles = -(-T // constants.tile)
    padding = z if mask is None else mask
    if tiles <= SHORT:
        programs = min(PROGRAMS, samples if tiles else 0)
        sums = torch.empty((programs, length), dtype=torch.float32, device=z.device)
        tensors: Any = z, grad, grad_z, padding, kept, sums, *weights
        _short_backward[form](programs, tensors, (T, tiles, samples), constants.backward)
        return grad_z, sums.sum(0)
    partial = torch.empty((samples, tiles, rank), dtype=torch.float32, device=z.device)
    _gate_gradient(samples * tiles, (z, grad, partial), (T, tiles), constants.gate_gradient)
    programs = min(PROGRAMS, samples * tiles)
    sums = torch.empty((programs, length), dtype=torch.float32, device=z.device)
    tensors = z, grad, grad_z, padding, partial, kept, sums, *weights
    _backward[form](programs, tensors, (T, tiles, samples), constants.backward)
    return grad_z, sums.sum(0)


class Constants(NamedTuple):
    """What the kernels of a gate are compiled for, each in the order of the kernel's arguments."""

    tile: int  # tokens
    first: dict[str, Any]  # of the token gate's forward pass, or of the partial sums
    apply: dict[str, Any]
    gate_gradient: dict[str, Any]
    backward: dict[str, Any]  # and of the kernels for short samples


@lru_cache
def _constants(form: str, by_token: bool, masked: bool, hidden: int, rank: int, q: int) -> Constants:
    """Looked up in every call: making them takes as long as a launch."""
    sizes = _sizes(hidden, rank, q)
    few = {name: sizes[name] for name in ("R", "RP", "BT", "PARTS")}  # of kernels that do not compute scores
    if by_token:
        token = {**sizes, "SLOPE": _token_slopes[form], "FORM": form}
        return Constants(sizes["BT"], token, {}, {}, token)
    return Constants(
        sizes["BT"],
        first={**sizes, "MASKED": masked},
        apply={**(few if form == "entropy" else sizes), "SLOPE": SEQUENCE_SLOPE},
        gate_gradient=few,
        backward={**sizes, "SLOPE": SEQUENCE_SLOPE, "MASKED": masked},
    )


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
