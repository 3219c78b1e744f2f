"""The softmax gate: its function of the scores, for both scopes, and its sequence form as kernels.

    g = sigmoid(4 + c e),  e = ln p + H,  p = softmax of the scores over the R ranks,  H = -Σ p ln p,  c = 8 / ln 16
    w = c g (1 - g) dL/dg,  dL/dscore = w - p (1 + e) Σ w

scope="token" takes each token's scores: `token_gate`. scope="sequence" takes their mean over the sample's real tokens, which
is w_out mean(hidden) + b_out. So tokens need no scores: `softmax_partial` sums the hidden units of each tile, `softmax_apply`
adds the tiles of a sample and gates. Backward: `sequence_gate_gradient` sums grad · z of each tile, `softmax_backward` takes
it to dL/dmean(hidden), which the real tokens share equally. Padding is gated, but has no part in the mean. Samples of few
tiles: `short_gate`, which shares the functions of one tile and of one sample.

Twin: `gate_forms.SoftmaxGate`, tests/reference. Programs take tiles in a fixed order, as in `sequence_gate`.
"""

import triton
import triton.language as tl

from foura.adapter.kernels.network import (
    NOTHING,
    coordinate_gradient,
    hidden_backward,
    hidden_units,
    load_coordinates,
    load_weights,
    store_coordinates,
    store_weight_gradients,
)
from foura.adapter.kernels.sequence_gate import tile_apply


@triton.jit
def softmax_gate(score, R: tl.constexpr, RP: tl.constexpr, SLOPE: tl.constexpr):
    """(g, p, e) of scores (n, RP), each of that shape; g and p of padded ranks are 0."""
    score = tl.where((tl.arange(0, RP) < R)[None, :], score, NOTHING)
    score -= tl.max(score, 1, keep_dims=True)
    log_p = score - tl.log(tl.sum(tl.exp(score), 1, keep_dims=True))
    p = tl.exp(log_p)
    excess = log_p - tl.sum(p * log_p, 1, keep_dims=True)
    return tl.sigmoid(4.0 + SLOPE * excess), p, excess


@triton.jit
def softmax_score_gradient(grad_gate, gate, p, excess, SLOPE: tl.constexpr):
    """Gradient of the scores (n, RP), given that of the gates."""
    weight = SLOPE * gate * (1.0 - gate) * grad_gate
    return weight - p * (1.0 + excess) * tl.sum(weight, 1, keep_dims=True)


# -- one sample


@triton.jit
def sample_gate(mean, w_out, bias_out, R: tl.constexpr, RP: tl.constexpr, SLOPE: tl.constexpr):
    """`softmax_gate`, each (1, RP), of a sample's mean(hidden) (HP,)."""
    score = tl.sum(w_out * mean[None, :], 1) + bias_out
    return softmax_gate(score[None, :], R, RP, SLOPE)


@triton.jit
def sample_backward(grad_gate, mean, w_out, bias_out, R: tl.constexpr, RP: tl.constexpr, SLOPE: tl.constexpr):
    """(g (1, RP), gradient of the scores (1, RP), of mean(hidden) (HP,)), given that of the gates (RP,)."""
    gate, p, excess = sample_gate(mean, w_out, bias_out, R, RP, SLOPE)
    grad_score = softmax_score_gradient(grad_gate[None, :], gate, p, excess, SLOPE)
    return gate, grad_score, tl.sum(w_out * tl.trans(grad_score), 0)


# -- one tile of a sample


@triton.jit
def tile_units(
    Z, mask, sample, tile, T, w_in, bias_in,
    R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """(Σ hidden over the tile's real tokens (HP,), their number)."""
    token = tile * BT + tl.arange(0, BT)
    real = token < T
    u, _, _ = load_coordinates(Z, sample * T + token, real, R, RP, PARTS)
    _, _, hidden = hidden_units(u, w_in, bias_in, R)
    if MASKED:
        real = real & (tl.load(mask + sample * T + token, mask=real, other=0) != 0)
    return tl.sum(tl.where(real[:, None], hidden, 0.0), 0), tl.sum(real.to(tl.float32), 0)


@triton.jit
def tile_units_backward(
    Z, grad_U, grad_Z, mask, sample, tile, T, gate, grad_each, w_in, bias_in,
    R: tl.constexpr, RP: tl.constexpr, BT: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Writes grad_Z; (gradient of w_in (HP, RP), of b_in (HP,)), given that of each real token's hidden units (HP,)."""
    token = tile * BT + tl.arange(0, BT)
    inside = token < T
    u, re, im = load_coordinates(Z, sample * T + token, inside, R, RP, PARTS)
    _, grad_re, grad_im = load_coordinates(grad_U, sample * T + token, inside, R, RP, PARTS)
    inverse, projected, hidden = hidden_units(u, w_in, bias_in, R)
    real = inside
    if MASKED:
        real = real & (tl.load(mask + sample * T + token, mask=inside, other=0) != 0)
    grad_hidden = tl.where(real[:, None], grad_each[None, :], 0.0)
    grad_pre, grad_projected, grad_u = hidden_backward(u, grad_hidden, inverse, projected, hidden, w_in, R)
    grad_re, grad_im = coordinate_gradient(u, re, im, grad_u, gate, grad_re, grad_im, PARTS)
    store_coordinates(grad_Z, sample * T + token, inside, grad_re, grad_im, R, RP, PARTS)
    return tl.dot(tl.trans(grad_projected), u, input_precision="ieee"), tl.sum(grad_pre, 0)


# -- kernels


@triton.jit(do_not_specialize=["T", "tiles"])
def softmax_partial(
    Z, mask, partial, W_in, b_in, W_out, b_out, T, tiles,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """partial (samples, tiles, H + 1): Σ hidden over the real tokens of a tile, and their number."""
    w_in, bias_in, _, _ = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    sample, tile, h = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.arange(0, HP)
    units, count = tile_units(Z, mask, sample, tile, T, w_in, bias_in, R, RP, BT, PARTS, MASKED)
    out = partial + (sample * tiles + tile) * (H + 1)
    tl.store(out + h, units, mask=h < H)
    tl.store(out + H, count)


@triton.jit(do_not_specialize=["T", "tiles"])
def softmax_apply(
    Z, U, partial, kept, W_in, b_in, W_out, b_out, T, tiles,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """U = g ⊙ Z; kept (samples, H + 1): mean(hidden) and the number of real tokens, for the backward pass."""
    _, _, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    sample, tile, h = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.arange(0, HP)
    total, count = tl.zeros((HP,), tl.float32), 0.0
    for other in range(tiles):
        at = partial + (sample * tiles + other) * (H + 1)
        total += tl.load(at + h, mask=h < H, other=0.0)
        count += tl.load(at + H)
    mean = total / count
    if tile == 0:
        tl.store(kept + sample * (H + 1) + h, mean, mask=h < H)
        tl.store(kept + sample * (H + 1) + H, count)
    gate, _, _ = sample_gate(mean, w_out, bias_out, R, RP, SLOPE)
    tile_apply(Z, U, sample, tile, T, gate, R, RP, BT, PARTS)


@triton.jit(do_not_specialize=["T", "tiles", "samples"])
def softmax_backward(
    Z, grad_U, grad_Z, mask, partial, kept, sums, W_in, b_in, W_out, b_out, T, tiles, samples,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """grad_Z, and this program's row of `sums`; a sample's gradients of w_out and b_out are those of its first tile."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    d_in, d_out = tl.zeros((HP, RP), tl.float32), tl.zeros((RP, HP), tl.float32)
    d_bias_in, d_bias_out = tl.zeros((HP,), tl.float32), tl.zeros((RP,), tl.float32)
    r, h = tl.arange(0, RP), tl.arange(0, HP)
    for number in range(tl.program_id(0), samples * tiles, tl.num_programs(0)):
        sample, tile = number // tiles, number % tiles
        grad_gate = tl.zeros((RP,), tl.float32)
        for other in range(tiles):
            grad_gate += tl.load(partial + (sample * tiles + other) * R + r, mask=r < R, other=0.0)
        mean = tl.load(kept + sample * (H + 1) + h, mask=h < H, other=0.0)
        gate, grad_score, grad_mean = sample_backward(grad_gate, mean, w_out, bias_out, R, RP, SLOPE)
        if tile == 0:
            d_out += tl.trans(grad_score) * mean[None, :]
            d_bias_out += tl.sum(grad_score, 0)
        grad_each = grad_mean / tl.load(kept + sample * (H + 1) + H)
        its_d_in, its_d_bias_in = tile_units_backward(
            Z, grad_U, grad_Z, mask, sample, tile, T, gate, grad_each, w_in, bias_in, R, RP, BT, PARTS, MASKED
        )
        d_in += its_d_in
        d_bias_in += its_d_bias_in
    row = sums + tl.program_id(0) * (2 * R * H + R + H)
    store_weight_gradients(row, d_in, d_bias_in, d_out, d_bias_out, R, H, RP, HP)
