"""The entropy form's sequence gate as four kernels, g ⊙ z and its gradient: one gate per sample and rank, from all real tokens.

    p = softmax of the scores over tokens    g = sigmoid(4 - c (ln T + Σ p ln p)),  c = 8 / ln 16

Twin: `entropy._sequence_gate`, tests/reference. Forward: `sequence_partial` sums e^score and e^score · score of each tile, with
its largest score; `sequence_apply` combines the tiles of a sample (a stable softmax in pieces) and gates. Backward:
`sequence_gate_gradient` sums grad · z of each tile; `sequence_backward` combines them. Scores are computed again, not saved.

A program takes one tile of one sample, but for the last kernel, whose programs take tiles in a fixed order and write their
sums to a row of their own: results do not depend on the order in which programs end.
"""

import triton
import triton.language as tl

from foura.adapter.kernels.network import (
    NOTHING,
    coordinate_gradient,
    load_coordinates,
    load_weights,
    network,
    network_backward,
    store_coordinates,
    store_weight_gradients,
)


@triton.jit(do_not_specialize=["T", "tiles"])
def sequence_partial(
    Z, mask, partial, W_in, b_in, W_out, b_out, T, tiles,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """partial (samples, tiles, 3, R): largest score, Σ e^(score - largest), Σ e^(score - largest) · score."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    sample, tile, r = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.arange(0, RP)
    token = tile * BT + tl.arange(0, BT)
    u, _, _ = load_coordinates(Z, sample * T + token, token < T, R, RP, PARTS)
    _, _, _, score = network(u, w_in, bias_in, w_out, bias_out, R)
    real = token < T
    if MASKED:
        real = real & (tl.load(mask + sample * T + token, mask=real, other=0) != 0)
    score = tl.where(real[:, None], score, NOTHING)
    largest = tl.max(score, 0)
    weight = tl.where(real[:, None], tl.exp(score - largest[None, :]), 0.0)
    out = partial + (sample * tiles + tile) * 3 * R + r
    tl.store(out, largest, mask=r < R)
    tl.store(out + R, tl.sum(weight, 0), mask=r < R)
    tl.store(out + 2 * R, tl.sum(tl.where(real[:, None], weight * score, 0.0), 0), mask=r < R)


@triton.jit(do_not_specialize=["T", "tiles"])
def sequence_apply(
    Z, U, partial, log_counts, gates, log_sums, entropies, T, tiles,
    R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """U = g ⊙ Z; g, ln Σ e^score and Σ p ln p of each sample, (samples, R), for the backward pass."""
    sample, tile, r = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.arange(0, RP)
    is_r = r < R
    largest = tl.full((RP,), NOTHING, tl.float32)
    total, weighted = tl.zeros((RP,), tl.float32), tl.zeros((RP,), tl.float32)
    for other in range(tiles):
        at = partial + (sample * tiles + other) * 3 * R + r
        its_largest = tl.load(at, mask=is_r, other=0.0)
        new = tl.maximum(largest, its_largest)
        mine, its = tl.exp(largest - new), tl.exp(its_largest - new)
        total = total * mine + tl.load(at + R, mask=is_r, other=1.0) * its
        weighted = weighted * mine + tl.load(at + 2 * R, mask=is_r, other=0.0) * its
        largest = new
    log_sum = largest + tl.log(total)
    entropy = weighted / total - log_sum
    gate = tl.sigmoid(4.0 - SLOPE * (tl.load(log_counts + sample) + entropy))
    if tile == 0:
        tl.store(gates + sample * R + r, gate, mask=is_r)
        tl.store(log_sums + sample * R + r, log_sum, mask=is_r)
        tl.store(entropies + sample * R + r, entropy, mask=is_r)
    token = tile * BT + tl.arange(0, BT)
    _, re, im = load_coordinates(Z, sample * T + token, token < T, R, RP, PARTS)
    store_coordinates(U, sample * T + token, token < T, gate[None, :] * re, gate[None, :] * im, R, RP, PARTS)


@triton.jit(do_not_specialize=["T", "tiles"])
def sequence_gate_gradient(
    Z, grad_U, partial, T, tiles, R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr
):
    """partial (samples, tiles, R): Σ grad_U · Z over the tokens of a tile, padding included, which is gated too."""
    sample, tile, r = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.arange(0, RP)
    token = tile * BT + tl.arange(0, BT)
    _, re, im = load_coordinates(Z, sample * T + token, token < T, R, RP, PARTS)
    _, grad_re, grad_im = load_coordinates(grad_U, sample * T + token, token < T, R, RP, PARTS)
    tl.store(partial + (sample * tiles + tile) * R + r, tl.sum(grad_re * re + grad_im * im, 0), mask=r < R)


@triton.jit(do_not_specialize=["T", "tiles", "samples"])
def sequence_backward(
    Z, grad_U, grad_Z, mask, partial, gates, log_sums, entropies, sums, W_in, b_in, W_out, b_out, T, tiles, samples,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """grad_Z, and this program's row of `sums`."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    d_in, d_out = tl.zeros((HP, RP), tl.float32), tl.zeros((RP, HP), tl.float32)
    d_bias_in, d_bias_out = tl.zeros((HP,), tl.float32), tl.zeros((RP,), tl.float32)
    r = tl.arange(0, RP)
    is_r = r < R
    for number in range(tl.program_id(0), samples * tiles, tl.num_programs(0)):
        sample, tile = number // tiles, number % tiles
        grad_gate = tl.zeros((RP,), tl.float32)
        for other in range(tiles):
            grad_gate += tl.load(partial + (sample * tiles + other) * R + r, mask=is_r, other=0.0)
        gate = tl.load(gates + sample * R + r, mask=is_r, other=0.0)
        log_sum = tl.load(log_sums + sample * R + r, mask=is_r, other=0.0)
        entropy = tl.load(entropies + sample * R + r, mask=is_r, other=0.0)
        slope = -SLOPE * gate * (1.0 - gate) * grad_gate
        token = tile * BT + tl.arange(0, BT)
        inside = token < T
        u, re, im = load_coordinates(Z, sample * T + token, inside, R, RP, PARTS)
        _, grad_re, grad_im = load_coordinates(grad_U, sample * T + token, inside, R, RP, PARTS)
        inverse, projected, hidden, score = network(u, w_in, bias_in, w_out, bias_out, R)
        real = inside
        if MASKED:
            real = real & (tl.load(mask + sample * T + token, mask=inside, other=0) != 0)
        real = real[:, None] & is_r[None, :]
        log_p = tl.where(real, score - log_sum[None, :], 0.0)
        grad_score = tl.where(real, tl.exp(log_p) * (log_p - entropy[None, :]) * slope[None, :], 0.0)
        grad_pre, grad_projected, grad_u = network_backward(u, grad_score, inverse, projected, hidden, w_in, w_out, R)
        grad_re, grad_im = coordinate_gradient(u, re, im, grad_u, gate[None, :], grad_re, grad_im, PARTS)
        store_coordinates(grad_Z, sample * T + token, inside, grad_re, grad_im, R, RP, PARTS)
        d_in += tl.dot(tl.trans(grad_projected), u, input_precision="ieee")
        d_out += tl.dot(tl.trans(grad_score), hidden, input_precision="ieee")
        d_bias_in += tl.sum(grad_pre, 0)
        d_bias_out += tl.sum(grad_score, 0)
    row = sums + tl.program_id(0) * (2 * R * H + R + H)
    store_weight_gradients(row, d_in, d_bias_in, d_out, d_bias_out, R, H, RP, HP)
