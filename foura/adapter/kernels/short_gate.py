"""The sequence gates of samples that are a few tiles long, as one kernel each way.

The equations are those of `sequence_gate` (the entropy form) and `softmax_gate`. A program takes whole samples, and reads the
tiles of one twice: for its gates, and to apply them. So nothing is written in between, and a layer launches half as many
kernels: with few tokens a launch takes longer than the work. Of longer samples several programs have to share one.

Twins: `entropy._sequence_gate`, `gate_forms.SoftmaxGate`, tests/reference.
"""

import triton
import triton.language as tl

from foura.adapter.kernels.network import NOTHING, load_weights, store_weight_gradients
from foura.adapter.kernels.sequence_gate import (
    entropy_sequence_gate,
    joined,
    load_gate,
    store_gate,
    tile_apply,
    tile_gate_gradient,
    tile_scores,
    tile_scores_backward,
)
from foura.adapter.kernels.softmax_gate import sample_backward, sample_gate, tile_units, tile_units_backward


@triton.jit(do_not_specialize=["T", "tiles"])
def entropy_short_forward(
    Z, U, mask, kept, W_in, b_in, W_out, b_out, T, tiles,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """`sequence_partial` and `sequence_apply`."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    sample = tl.program_id(0)
    largest = tl.full((RP,), NOTHING, tl.float32)
    total, weighted, count = tl.zeros((RP,), tl.float32), tl.zeros((RP,), tl.float32), 0.0
    for tile in tl.range(0, tiles, num_stages=1):
        its_largest, its_total, its_weighted, its_count = tile_scores(
            Z, mask, sample, tile, T, w_in, bias_in, w_out, bias_out, R, RP, BT, PARTS, MASKED
        )
        largest, total, weighted = joined(largest, total, weighted, its_largest, its_total, its_weighted)
        count += its_count
    gate, log_sum, entropy = entropy_sequence_gate(largest, total, weighted, count, SLOPE)
    store_gate(kept + sample * 3 * R, gate, log_sum, entropy, R, RP)
    for tile in tl.range(0, tiles, num_stages=1):
        tile_apply(Z, U, sample, tile, T, gate[None, :], R, RP, BT, PARTS)


@triton.jit(do_not_specialize=["T", "tiles", "samples"])
def entropy_short_backward(
    Z, grad_U, grad_Z, mask, kept, sums, W_in, b_in, W_out, b_out, T, tiles, samples,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """`sequence_gate_gradient` and `sequence_backward`."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    d_in, d_out = tl.zeros((HP, RP), tl.float32), tl.zeros((RP, HP), tl.float32)
    d_bias_in, d_bias_out = tl.zeros((HP,), tl.float32), tl.zeros((RP,), tl.float32)
    for sample in tl.range(tl.program_id(0), samples, tl.num_programs(0), num_stages=1):
        grad_gate = tl.zeros((RP,), tl.float32)
        for tile in tl.range(0, tiles, num_stages=1):
            grad_gate += tile_gate_gradient(Z, grad_U, sample, tile, T, R, RP, BT, PARTS)
        gate, log_sum, entropy = load_gate(kept + sample * 3 * R, R, RP)
        for tile in tl.range(0, tiles, num_stages=1):
            its_d_in, its_d_bias_in, its_d_out, its_d_bias_out = tile_scores_backward(
                Z, grad_U, grad_Z, mask, sample, tile, T, grad_gate, gate, log_sum, entropy, w_in, bias_in, w_out, bias_out,
                R, RP, BT, PARTS, SLOPE, MASKED,
            )  # fmt: skip
            d_in += its_d_in
            d_bias_in += its_d_bias_in
            d_out += its_d_out
            d_bias_out += its_d_bias_out
    row = sums + tl.program_id(0) * (2 * R * H + R + H)
    store_weight_gradients(row, d_in, d_bias_in, d_out, d_bias_out, R, H, RP, HP)


@triton.jit(do_not_specialize=["T", "tiles"])
def softmax_short_forward(
    Z, U, mask, kept, W_in, b_in, W_out, b_out, T, tiles,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """`softmax_partial` and `softmax_apply`."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    sample, h = tl.program_id(0), tl.arange(0, HP)
    total, count = tl.zeros((HP,), tl.float32), 0.0
    for tile in tl.range(0, tiles, num_stages=1):
        units, its_count = tile_units(Z, mask, sample, tile, T, w_in, bias_in, R, RP, BT, PARTS, MASKED)
        total += units
        count += its_count
    mean = total / count
    tl.store(kept + sample * (H + 1) + h, mean, mask=h < H)
    tl.store(kept + sample * (H + 1) + H, count)
    gate, _, _ = sample_gate(mean, w_out, bias_out, R, RP, SLOPE)
    for tile in tl.range(0, tiles, num_stages=1):
        tile_apply(Z, U, sample, tile, T, gate, R, RP, BT, PARTS)


@triton.jit(do_not_specialize=["T", "tiles", "samples"])
def softmax_short_backward(
    Z, grad_U, grad_Z, mask, kept, sums, W_in, b_in, W_out, b_out, T, tiles, samples,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """`sequence_gate_gradient` and `softmax_backward`."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    d_in, d_out = tl.zeros((HP, RP), tl.float32), tl.zeros((RP, HP), tl.float32)
    d_bias_in, d_bias_out = tl.zeros((HP,), tl.float32), tl.zeros((RP,), tl.float32)
    h = tl.arange(0, HP)
    for sample in tl.range(tl.program_id(0), samples, tl.num_programs(0), num_stages=1):
        grad_gate = tl.zeros((RP,), tl.float32)
        for tile in tl.range(0, tiles, num_stages=1):
            grad_gate += tile_gate_gradient(Z, grad_U, sample, tile, T, R, RP, BT, PARTS)
        mean = tl.load(kept + sample * (H + 1) + h, mask=h < H, other=0.0)
        gate, grad_score, grad_mean = sample_backward(grad_gate, mean, w_out, bias_out, R, RP, SLOPE)
        d_out += tl.trans(grad_score) * mean[None, :]
        d_bias_out += tl.sum(grad_score, 0)
        grad_each = grad_mean / tl.load(kept + sample * (H + 1) + H)
        for tile in tl.range(0, tiles, num_stages=1):
            its_d_in, its_d_bias_in = tile_units_backward(
                Z, grad_U, grad_Z, mask, sample, tile, T, gate, grad_each, w_in, bias_in, R, RP, BT, PARTS, MASKED
            )
            d_in += its_d_in
            d_bias_in += its_d_bias_in
    row = sums + tl.program_id(0) * (2 * R * H + R + H)
    store_weight_gradients(row, d_in, d_bias_in, d_out, d_bias_out, R, H, RP, HP)
