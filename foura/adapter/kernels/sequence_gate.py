"""The entropy form's sequence gate as four kernels, g ⊙ z and its gradient: one gate per sample and rank, from all real tokens.

    p = softmax of the scores over tokens    g = sigmoid(4 - c (ln T + Σ p ln p)),  c = 8 / ln 16

Twin: `entropy._sequence_gate`, tests/reference. Forward: `sequence_partial` sums e^score and e^score · score of each tile, with
its largest score; `sequence_apply` combines the tiles of a sample (a stable softmax in pieces) and gates. Backward:
`sequence_gate_gradient` sums grad · z of each tile; `sequence_backward` combines them. Scores are computed again, not saved.
Samples of few tiles: `short_gate`, which shares the functions of one tile and of one sample.

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

# -- one sample


@triton.jit
def joined(largest, total, weighted, its_largest, its_total, its_weighted):
    """(largest score, Σ e^(score - largest), Σ e^(score - largest) · score), each (RP,), of two sets of tokens."""
    new = tl.maximum(largest, its_largest)
    mine, its = tl.exp(largest - new), tl.exp(its_largest - new)
    return new, total * mine + its_total * its, weighted * mine + its_weighted * its


@triton.jit
def entropy_sequence_gate(largest, total, weighted, count, SLOPE: tl.constexpr):
    """(g, ln Σ e^score, Σ p ln p), each (RP,), of a sample with `count` real tokens."""
    log_sum = largest + tl.log(total)
    entropy = weighted / total - log_sum
    return tl.sigmoid(4.0 - SLOPE * (tl.log(count) + entropy)), log_sum, entropy


@triton.jit
def store_gate(kept, gate, log_sum, entropy, R: tl.constexpr, RP: tl.constexpr):
    r = tl.arange(0, RP)
    tl.store(kept + r, gate, mask=r < R)
    tl.store(kept + R + r, log_sum, mask=r < R)
    tl.store(kept + 2 * R + r, entropy, mask=r < R)


@triton.jit
def load_gate(kept, R: tl.constexpr, RP: tl.constexpr):
    r = tl.arange(0, RP)
    gate = tl.load(kept + r, mask=r < R, other=0.0)
    return gate, tl.load(kept + R + r, mask=r < R, other=0.0), tl.load(kept + 2 * R + r, mask=r < R, other=0.0)


# -- one tile of a sample


@triton.jit
def tile_scores(
    Z, mask, sample, tile, T, w_in, bias_in, w_out, bias_out,
    R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """(largest score, Σ e^(score - largest), Σ e^(score - largest) · score, each (RP,), and the number of real tokens)."""
    token = tile * BT + tl.arange(0, BT)
    real = token < T
    u, _, _ = load_coordinates(Z, sample * T + token, real, R, RP, PARTS)
    _, _, _, score = network(u, w_in, bias_in, w_out, bias_out, R)
    if MASKED:
        real = real & (tl.load(mask + sample * T + token, mask=real, other=0) != 0)
    score = tl.where(real[:, None], score, NOTHING)
    largest = tl.max(score, 0)
    weight = tl.where(real[:, None], tl.exp(score - largest[None, :]), 0.0)
    weighted = tl.sum(tl.where(real[:, None], weight * score, 0.0), 0)
    return largest, tl.sum(weight, 0), weighted, tl.sum(real.to(tl.float32), 0)


@triton.jit
def tile_apply(
    Z, U, sample, tile, T, gate, R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """U = g ⊙ Z for g (1, RP)."""
    token = tile * BT + tl.arange(0, BT)
    _, re, im = load_coordinates(Z, sample * T + token, token < T, R, RP, PARTS)
    store_coordinates(U, sample * T + token, token < T, gate * re, gate * im, R, RP, PARTS)


@triton.jit
def tile_gate_gradient(
    Z, grad_U, sample, tile, T, R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """Σ grad_U · Z over the tokens of a tile (RP,), padding included, which is gated too."""
    token = tile * BT + tl.arange(0, BT)
    _, re, im = load_coordinates(Z, sample * T + token, token < T, R, RP, PARTS)
    _, grad_re, grad_im = load_coordinates(grad_U, sample * T + token, token < T, R, RP, PARTS)
    return tl.sum(grad_re * re + grad_im * im, 0)


@triton.jit
def tile_scores_backward(
    Z, grad_U, grad_Z, mask, sample, tile, T, grad_gate, gate, log_sum, entropy, w_in, bias_in, w_out, bias_out,
    R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr, SLOPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Writes grad_Z; gradients of w_in (HP, RP), b_in (HP,), w_out (RP, HP) and b_out (RP,), given that of the gates (RP,)."""
    slope = -SLOPE * gate * (1.0 - gate) * grad_gate
    token = tile * BT + tl.arange(0, BT)
    inside = token < T
    u, re, im = load_coordinates(Z, sample * T + token, inside, R, RP, PARTS)
    _, grad_re, grad_im = load_coordinates(grad_U, sample * T + token, inside, R, RP, PARTS)
    inverse, projected, hidden, score = network(u, w_in, bias_in, w_out, bias_out, R)
    real = inside
    if MASKED:
        real = real & (tl.load(mask + sample * T + token, mask=inside, other=0) != 0)
    real = real[:, None] & (tl.arange(0, RP) < R)[None, :]
    log_p = tl.where(real, score - log_sum[None, :], 0.0)
    grad_score = tl.where(real, tl.exp(log_p) * (log_p - entropy[None, :]) * slope[None, :], 0.0)
    grad_pre, grad_projected, grad_u = network_backward(u, grad_score, inverse, projected, hidden, w_in, w_out, R)
    grad_re, grad_im = coordinate_gradient(u, re, im, grad_u, gate[None, :], grad_re, grad_im, PARTS)
    store_coordinates(grad_Z, sample * T + token, inside, grad_re, grad_im, R, RP, PARTS)
    d_in = tl.dot(tl.trans(grad_projected), u, input_precision="ieee")
    d_out = tl.dot(tl.trans(grad_score), hidden, input_precision="ieee")
    return d_in, tl.sum(grad_pre, 0), d_out, tl.sum(grad_score, 0)


# -- kernels


@triton.jit(do_not_specialize=["T", "tiles"])
def sequence_partial(
    Z, mask, partial, W_in, b_in, W_out, b_out, T, tiles,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """partial (samples, tiles, 3 R + 1): `tile_scores`."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    sample, tile, r = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.arange(0, RP)
    largest, total, weighted, count = tile_scores(
        Z, mask, sample, tile, T, w_in, bias_in, w_out, bias_out, R, RP, BT, PARTS, MASKED
    )
    out = partial + (sample * tiles + tile) * (3 * R + 1)
    tl.store(out + r, largest, mask=r < R)
    tl.store(out + R + r, total, mask=r < R)
    tl.store(out + 2 * R + r, weighted, mask=r < R)
    tl.store(out + 3 * R, count)


@triton.jit(do_not_specialize=["T", "tiles"])
def sequence_apply(
    Z, U, partial, kept, T, tiles,
    R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """U = g ⊙ Z; kept (samples, 3, R): g, ln Σ e^score and Σ p ln p of each sample, for the backward pass."""
    sample, tile, r = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.arange(0, RP)
    is_r = r < R
    largest = tl.full((RP,), NOTHING, tl.float32)
    total, weighted, count = tl.zeros((RP,), tl.float32), tl.zeros((RP,), tl.float32), 0.0
    for other in range(tiles):
        at = partial + (sample * tiles + other) * (3 * R + 1)
        its_largest = tl.load(at + r, mask=is_r, other=0.0)
        its_total = tl.load(at + R + r, mask=is_r, other=1.0)
        its_weighted = tl.load(at + 2 * R + r, mask=is_r, other=0.0)
        largest, total, weighted = joined(largest, total, weighted, its_largest, its_total, its_weighted)
        count += tl.load(at + 3 * R)
    gate, log_sum, entropy = entropy_sequence_gate(largest, total, weighted, count, SLOPE)
    if tile == 0:
        store_gate(kept + sample * 3 * R, gate, log_sum, entropy, R, RP)
    tile_apply(Z, U, sample, tile, T, gate[None, :], R, RP, BT, PARTS)


@triton.jit(do_not_specialize=["T", "tiles"])
def sequence_gate_gradient(
    Z, grad_U, partial, T, tiles, R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr
):
    """partial (samples, tiles, R): `tile_gate_gradient`."""
    sample, tile, r = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.arange(0, RP)
    found = tile_gate_gradient(Z, grad_U, sample, tile, T, R, RP, BT, PARTS)
    tl.store(partial + (sample * tiles + tile) * R + r, found, mask=r < R)


@triton.jit(do_not_specialize=["T", "tiles", "samples"])
def sequence_backward(
    Z, grad_U, grad_Z, mask, partial, kept, sums, W_in, b_in, W_out, b_out, T, tiles, samples,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """grad_Z, and this program's row of `sums`."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    d_in, d_out = tl.zeros((HP, RP), tl.float32), tl.zeros((RP, HP), tl.float32)
    d_bias_in, d_bias_out = tl.zeros((HP,), tl.float32), tl.zeros((RP,), tl.float32)
    r = tl.arange(0, RP)
    for number in range(tl.program_id(0), samples * tiles, tl.num_programs(0)):
        sample, tile = number // tiles, number % tiles
        grad_gate = tl.zeros((RP,), tl.float32)
        for other in range(tiles):
            grad_gate += tl.load(partial + (sample * tiles + other) * R + r, mask=r < R, other=0.0)
        gate, log_sum, entropy = load_gate(kept + sample * 3 * R, R, RP)
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
