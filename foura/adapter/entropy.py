"""The entropy gate's equation, with its derivative written out: MLP, entropy, sigmoid (paper sec. 3.4, eq. 4).

    u' = u / rms(u)      score = w_out tanh(w_in u' + b_in) + b_out      gate = sigmoid(4 - c D)

token       D = ln 2 - H, H the binary entropy of sigmoid(score); c = 8 / ln 2
sequence    D = ln T - H, H the entropy over the sample's T tokens of the softmax of a rank's scores; c = 8 / ln 16

`gate_forms` says what is the paper's and what is our reconstruction.

    shapes   S samples · T tokens · r rank · h hidden units
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from foura.adapter.tracing import traced

REFERENCE_TOKENS = 16  # a sequence gate closes fully (-4) when a rank singles out one token of this many
SEQUENCE_SLOPE = 8.0 / math.log(REFERENCE_TOKENS)
TOKEN_SLOPE = 8.0 / math.log(2.0)
_RMS_EPS = 1e-12


def entropy_gate(
    u: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    tokens: int | Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Gates in (0, 1) from rank coordinates u: (..., r) token by token, or with `tokens` (S, T, r) to (S, 1, r).

    Second-order gradients (double backward) are not supported.

    Args:
        w_in, b_in: (h, r), (h,). w_out, b_out: (r, h), (r,).
        tokens: T, or (S, 1, 1) where samples differ; None for one gate per token.
        mask: (S, T), false for padding.
    """
    if torch.is_grad_enabled() and not traced():
        return _EntropyGate.apply(u, w_in, b_in, w_out, b_out, tokens, mask)
    score = linear(hidden_units(u, w_in, b_in), w_out, b_out)
    return _token_gate(score)[0] if tokens is None else _sequence_gate(score, tokens, mask)[0]


def hidden_units(u: Tensor, w_in: Tensor, b_in: Tensor) -> Tensor:
    """tanh(w_in u / rms(u) + b_in) for u (..., r): (..., h)."""
    return _hidden(u, w_in, b_in)[2]


def _hidden(u: Tensor, w_in: Tensor, b_in: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(1 / rms(u), w_in u, tanh(w_in u / rms(u) + b_in)); dividing after the product, where there are h numbers, not r."""
    norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    inverse_rms = torch.rsqrt(norm * norm / u.shape[-1] + _RMS_EPS)
    projected = linear(u, w_in)
    return inverse_rms, projected, torch.addcmul(b_in, projected, inverse_rms).tanh()


def _token_gate(score: Tensor) -> tuple[Tensor, Tensor]:
    """(gate, m): sigmoid(4 - c (ln 2 - H)), H the entropy of a Bernoulli with log-odds `score`, m its larger probability.

    H = -ln m + |score| (1 - m), which is stable for any score.
    """
    size = score.abs()
    m = torch.sigmoid(size)
    entropy = torch.addcmul(size, size, m, value=-1.0) - m.log()
    return torch.sigmoid(TOKEN_SLOPE * entropy - 4.0), m


def _sequence_gate(score: Tensor, tokens: int | Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(gate (S, 1, r), ln p (S, T, r), Σ p ln p): sigmoid(4 - c (ln T - H)), p the softmax of the scores over tokens."""
    if mask is not None:
        score = score.masked_fill(~mask.unsqueeze(-1), -math.inf)
    log_p = score.log_softmax(1)
    if mask is not None:
        log_p = log_p.clamp(min=-1e4)  # 0 ln 0 = 0
    negative_entropy_S1r = (log_p.exp() * log_p).sum(1, keepdim=True)
    if isinstance(tokens, torch.SymInt):  # a length that torch.export leaves open
        tokens = torch.scalar_tensor(tokens, device=score.device)
    log_tokens = math.log(tokens or 1) if isinstance(tokens, int) else tokens.to(score.dtype).log()
    return torch.sigmoid(4.0 - SEQUENCE_SLOPE * (log_tokens + negative_entropy_S1r)), log_p, negative_entropy_S1r


class _EntropyGate(torch.autograd.Function):
    """`entropy_gate` with its derivative written out: autograd's way makes three times as many passes over (S, T, r).

    dD/dscore is score m (1 - m) for one token, and p (ln p - Σ p ln p) over tokens; dgate/dD = -c gate (1 - gate).
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        w_in: Tensor,
        b_in: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        tokens: int | Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        inverse_rms, projected, hidden = _hidden(u, w_in, b_in)
        score = linear(hidden, w_out, b_out)
        ctx.by_token = tokens is None
        if tokens is None:
            gate, m = _token_gate(score)
            kept = (gate, score, m)
        else:
            gate, log_p, negative_entropy = _sequence_gate(score, tokens, mask)
            kept = (gate, log_p, negative_entropy)
        ctx.save_for_backward(u, w_in, w_out, inverse_rms, projected, hidden, *kept)
        return gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, w_in, w_out, inverse_rms, projected, hidden, gate, *kept = ctx.saved_tensors
        slope = torch.addcmul(gate, gate, gate, value=-1.0).mul_(grad)
        if ctx.by_token:
            score, m = kept
            grad_score = slope.mul_(torch.addcmul(m, m, m, value=-1.0).mul_(score)).mul_(-TOKEN_SLOPE)
        else:
            log_p, negative_entropy = kept
            grad_score = (log_p - negative_entropy).mul_(log_p.exp()).mul_(slope.mul_(-SEQUENCE_SLOPE))
        grad_score = grad_score.view(-1, grad_score.shape[-1])
        hidden_rows = hidden.view(-1, hidden.shape[-1])
        grad_pre = (grad_score @ w_out).mul_(torch.addcmul(hidden.new_ones(()), hidden_rows, hidden_rows, value=-1.0))
        inverse_rows = inverse_rms.view(-1, 1)
        grad_projected = grad_pre * inverse_rows
        grad_inverse = (grad_pre * projected.view(-1, projected.shape[-1])).sum(-1, keepdim=True)
        u_rows = u.reshape(-1, u.shape[-1])
        grad_u = None
        if ctx.needs_input_grad[0]:
            # d(1/rms)/du = -u / (r rms³)
            along = grad_inverse.mul_(inverse_rows**3).div_(-u.shape[-1])
            grad_u = (u_rows * along).addmm_(grad_projected, w_in).view_as(u)
        return (
            grad_u,
            grad_projected.T @ u_rows,
            grad_pre.sum(0),
            grad_score.T @ hidden_rows,
            grad_score.sum(0),
            None,
            None,
        )
