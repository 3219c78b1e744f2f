"""The token gate as two kernels, g ⊙ z and its gradient: one gate per token and rank, from that token alone.

    entropy   g = sigmoid(c H - 4),  H = -ln p + |score| (1 - p),  p = sigmoid(|score|),  c = 8 / ln 2
    softmax   `softmax_gate`

Twins: `entropy._token_gate`, `gate_forms.SoftmaxGate`, tests/reference. A program takes tiles of tokens in a fixed order and
writes its sums of the weights' gradients to a row of its own, so results do not depend on the order in which programs end.
"""

import triton
import triton.language as tl

from foura.adapter.kernels.network import (
    coordinate_gradient,
    load_coordinates,
    load_weights,
    network,
    network_backward,
    store_coordinates,
    store_weight_gradients,
)
from foura.adapter.kernels.softmax_gate import softmax_gate, softmax_score_gradient


@triton.jit
def entropy_gate(score, SLOPE: tl.constexpr):
    """(gate, p)."""
    size = tl.abs(score)
    p = tl.sigmoid(size)
    return tl.sigmoid(SLOPE * (size - size * p - tl.log(p)) - 4.0), p


@triton.jit(do_not_specialize=["T"])
def token_forward(
    Z, U, W_in, b_in, W_out, b_out, T,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """U = g(Z) ⊙ Z for T tokens."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    u, re, im = load_coordinates(Z, rows, rows < T, R, RP, PARTS)
    _, _, _, score = network(u, w_in, bias_in, w_out, bias_out, R)
    if FORM == "softmax":
        gate, _, _ = softmax_gate(score, R, RP, SLOPE)
    else:
        gate, _ = entropy_gate(score, SLOPE)
    store_coordinates(U, rows, rows < T, gate * re, gate * im, R, RP, PARTS)


@triton.jit(do_not_specialize=["T", "tiles"])
def token_backward(
    Z, grad_U, grad_Z, sums, W_in, b_in, W_out, b_out, T, tiles,
    R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, BT: tl.constexpr,
    PARTS: tl.constexpr, SLOPE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """grad_Z, and this program's row of `sums`."""
    w_in, bias_in, w_out, bias_out = load_weights(W_in, b_in, W_out, b_out, R, H, RP, HP)
    d_in, d_out = tl.zeros((HP, RP), tl.float32), tl.zeros((RP, HP), tl.float32)
    d_bias_in, d_bias_out = tl.zeros((HP,), tl.float32), tl.zeros((RP,), tl.float32)
    is_r = (tl.arange(0, RP) < R)[None, :]
    # one stage: tiles loaded ahead would take more memory than a block has (300 KB at rank 256 in float32, with a DFT)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        rows = tile * BT + tl.arange(0, BT)
        u, re, im = load_coordinates(Z, rows, rows < T, R, RP, PARTS)
        _, grad_re, grad_im = load_coordinates(grad_U, rows, rows < T, R, RP, PARTS)
        inverse, projected, hidden, score = network(u, w_in, bias_in, w_out, bias_out, R)
        if FORM == "softmax":
            gate, p, excess = softmax_gate(score, R, RP, SLOPE)
            grad_score = softmax_score_gradient(grad_re * re + grad_im * im, gate, p, excess, SLOPE)
        else:
            gate, p = entropy_gate(score, SLOPE)
            slope = gate * (1.0 - gate) * (grad_re * re + grad_im * im)
            grad_score = slope * p * (1.0 - p) * score * (-SLOPE)
        grad_score = tl.where((rows < T)[:, None] & is_r, grad_score, 0.0)
        grad_pre, grad_projected, grad_u = network_backward(u, grad_score, inverse, projected, hidden, w_in, w_out, R)
        grad_re, grad_im = coordinate_gradient(u, re, im, grad_u, gate, grad_re, grad_im, PARTS)
        store_coordinates(grad_Z, rows, rows < T, grad_re, grad_im, R, RP, PARTS)
        d_in += tl.dot(tl.trans(grad_projected), u, input_precision="ieee")
        d_out += tl.dot(tl.trans(grad_score), hidden, input_precision="ieee")
        d_bias_in += tl.sum(grad_pre, 0)
        d_bias_out += tl.sum(grad_score, 0)
    row = sums + tl.program_id(0) * (2 * R * H + R + H)
    store_weight_gradients(row, d_in, d_bias_in, d_out, d_bias_out, R, H, RP, HP)
