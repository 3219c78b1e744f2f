"""The gate's network inside a kernel: scores of a tile of tokens, and their derivative (`entropy` has the equations).

    inverse = 1 / rms(u)     hidden = tanh(w_in u · inverse + b_in)     score = w_out hidden + b_out

    shapes   BT tokens of a tile · R ranks, padded to RP · H hidden units, padded to HP (powers of 2 of at least 16)

Every program reads all weights: they are few. Padded ranks and units are zero throughout. Everything is in float32.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1e30)  # a score that no token and no rank has


@triton.jit
def load_weights(W_in, b_in, W_out, b_out, R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr):
    """w_in (HP, RP), b_in (HP,), w_out (RP, HP), b_out (RP,)."""
    r, h = tl.arange(0, RP), tl.arange(0, HP)
    is_r, is_h = r < R, h < H
    w_in = tl.load(W_in + h[:, None] * R + r[None, :], mask=is_h[:, None] & is_r[None, :], other=0.0).to(tl.float32)
    w_out = tl.load(W_out + r[:, None] * H + h[None, :], mask=is_r[:, None] & is_h[None, :], other=0.0).to(tl.float32)
    bias_in = tl.load(b_in + h, mask=is_h, other=0.0).to(tl.float32)
    bias_out = tl.load(b_out + r, mask=is_r, other=0.0).to(tl.float32)
    return w_in, bias_in, w_out, bias_out


@triton.jit
def load_coordinates(Z, rows, inside, R: tl.constexpr, RP: tl.constexpr, PARTS: tl.constexpr):
    """(u, re, im), each (BT, RP), of tokens `rows`: u is z itself (im is then 0), or |z| of its real and imaginary part."""
    r = tl.arange(0, RP)
    mask = inside[:, None] & (r < R)[None, :]
    at = Z + rows.to(tl.int64)[:, None] * (PARTS * R) + r[None, :]  # z may have more than 2³¹ numbers
    re = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if PARTS == 1:
        return re, re, tl.zeros_like(re)
    im = tl.load(at + R, mask=mask, other=0.0).to(tl.float32)
    return tl.sqrt(re * re + im * im), re, im


@triton.jit
def store_coordinates(Z, rows, inside, re, im, R: tl.constexpr, RP: tl.constexpr, PARTS: tl.constexpr):
    r = tl.arange(0, RP)
    mask = inside[:, None] & (r < R)[None, :]
    at = Z + rows.to(tl.int64)[:, None] * (PARTS * R) + r[None, :]
    tl.store(at, re.to(Z.dtype.element_ty), mask=mask)
    if PARTS == 2:
        tl.store(at + R, im.to(Z.dtype.element_ty), mask=mask)


@triton.jit
def hidden_units(u, w_in, b_in, R: tl.constexpr):
    """(inverse (BT,), w_in u (BT, HP), hidden (BT, HP))."""
    inverse = 1.0 / tl.sqrt(tl.sum(u * u, 1) / R + 1e-12)
    projected = tl.dot(u, tl.trans(w_in), input_precision="ieee")
    hidden = 2.0 * tl.sigmoid(2.0 * (projected * inverse[:, None] + b_in[None, :])) - 1.0
    return inverse, projected, hidden


@triton.jit
def network(u, w_in, b_in, w_out, b_out, R: tl.constexpr):
    """`hidden_units`, then score (BT, RP)."""
    inverse, projected, hidden = hidden_units(u, w_in, b_in, R)
    score = tl.dot(hidden, tl.trans(w_out), input_precision="ieee") + b_out[None, :]
    return inverse, projected, hidden, score


@triton.jit
def network_backward(u, grad_score, inverse, projected, hidden, w_in, w_out, R: tl.constexpr):
    """`hidden_backward`, given the gradient of the score."""
    grad_hidden = tl.dot(grad_score, w_out, input_precision="ieee")
    return hidden_backward(u, grad_hidden, inverse, projected, hidden, w_in, R)


@triton.jit
def hidden_backward(u, grad_hidden, inverse, projected, hidden, w_in, R: tl.constexpr):
    """Gradients (of the pre-activation (BT, HP), of w_in u (BT, HP), of u (BT, RP)), given that of the hidden units."""
    grad_pre = grad_hidden * (1.0 - hidden * hidden)
    grad_projected = grad_pre * inverse[:, None]
    grad_inverse = tl.sum(grad_pre * projected, 1)
    along = grad_inverse * inverse * inverse * inverse / (-R)  # d(1 / rms) / du = -u / (R rms³)
    return grad_pre, grad_projected, u * along[:, None] + tl.dot(grad_projected, w_in, input_precision="ieee")


@triton.jit
def coordinate_gradient(u, re, im, grad_u, gate, grad_re, grad_im, PARTS: tl.constexpr):
    """Gradients of (re, im) from that of u and those of gate · re and gate · im."""
    if PARTS == 1:
        return grad_u + gate * grad_re, grad_im
    direction = tl.where(u > 0.0, grad_u / tl.where(u > 0.0, u, 1.0), 0.0)
    return direction * re + gate * grad_re, direction * im + gate * grad_im


@triton.jit
def store_weight_gradients(
    out, d_in, d_bias_in, d_out, d_bias_out, R: tl.constexpr, H: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr
):
    """One row of partial sums: w_in, b_in, w_out, b_out."""
    r, h = tl.arange(0, RP), tl.arange(0, HP)
    is_r, is_h = r < R, h < H
    tl.store(out + h[:, None] * R + r[None, :], d_in, mask=is_h[:, None] & is_r[None, :])
    out += R * H
    tl.store(out + h, d_bias_in, mask=is_h)
    out += H
    tl.store(out + r[:, None] * H + h[None, :], d_out, mask=is_r[:, None] & is_h[None, :])
    tl.store(out + R * H + r, d_bias_out, mask=is_r)
