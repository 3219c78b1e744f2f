"""The adaptive rank gate G (paper sec. 3.4, eq. 4 and App. C.2).

What the paper fixes: an MLP on the rank coordinates z = A F x, an entropy, a sigmoid, soft gating in training and at
inference. Eq. 4 as printed (sigmoid(entropy) == 1) can never be trained, and how r gates come out of an entropy is not
said. What is built here is therefore OUR RECONSTRUCTION; its constants follow the soft-gating recipe that the paper
points to: a sigmoid between +4 (open, 0.982) and -4 (closed, 0.018).

    shapes   S samples · T tokens · r rank · h hidden units
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

GATES = ("none", "adaptive", "frozen")
GATE_SCOPES = ("sequence", "token")
OPEN = 0.5  # a rank counts as open where its gate is above this

REFERENCE_TOKENS = 16  # a sequence gate closes fully (-4) when a rank singles out one token of this many
_SEQUENCE_SLOPE = 8.0 / math.log(REFERENCE_TOKENS)
_TOKEN_SLOPE = 8.0 / math.log(2.0)
_RMS_EPS = 1e-12


class RankGate(nn.Module):
    """g = sigmoid(4 - c D): D says how far the scores MLP(u) are from saying nothing; u are normalised coordinates.

    scope="sequence": one gate per sample and rank. D = ln T - H, with H the entropy over the sample's tokens of the
    softmax of the rank's scores; c = 8 / ln 16. A rank that fires alike everywhere is open, one that singles out few
    tokens closes. D, unlike H / ln T, does not change when a sequence is repeated, so gates do not drift with length.
    scope="token": one gate per token and rank. D = ln 2 - H, with H the binary entropy of the sigmoid of the score;
    c = 8 / ln 2. It looks at one token alone, so it is causal. A sample of a single token, which has no entropy over
    tokens, is gated so too.

    u is divided by its root mean square over the ranks, so the gate does not depend on the scale of A or of x, and its
    scores start moderate: near the maximum of the entropy, hence open (about 0.95), but off the flat top, where the
    gradient would be zero.
    """

    def __init__(self, rank: int, scope: str) -> None:
        super().__init__()
        if scope not in GATE_SCOPES:
            raise ValueError(f"gate_scope={scope!r} is not known; choose one of {', '.join(GATE_SCOPES)}")
        self.scope = scope
        self.padding_mask: Tensor | None = None  # (S, T), true for real tokens; see model.attention_mask
        hidden = max(4, rank // 4)
        # plain parameters, not nn.Linear: PEFT takes the adapter's name out of checkpoint keys one level deep only
        self.weight_in = nn.Parameter(torch.empty(hidden, rank))
        self.bias_in = nn.Parameter(torch.empty(hidden))
        self.weight_out = nn.Parameter(torch.empty(rank, hidden))
        self.bias_out = nn.Parameter(torch.empty(rank))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """nn.Linear's start, with the last layer three times as wide: scores then have about unit variance.

        At nn.Linear's own width the entropy starts so flat at its maximum that the gates hardly ever leave it.
        """
        for weight, bias, width in ((self.weight_in, self.bias_in, 1.0), (self.weight_out, self.bias_out, 3.0)):
            bound = 1.0 / math.sqrt(weight.shape[1])
            weight.uniform_(-width * bound, width * bound)
            bias.uniform_(-bound, bound)

    def forward(self, u: Tensor) -> Tensor:
        """Gates in (0, 1) for rank coordinates u.

        Args:
            u: (S, ..., r), real and non-negative or signed; all axes between the first and the last are tokens.

        Returns:
            (S, 1, ..., 1, r) for scope "sequence", (S, ..., r) for scope "token", in the dtype of `u`.
        """
        if torch.is_autocast_enabled(u.device.type):
            with torch.autocast(u.device.type, enabled=False):
                return self.forward(u)
        if u.dtype not in (torch.float32, torch.float64):  # an entropy is a difference of logs: not in half precision
            return self.forward(u.float()).to(u.dtype)
        tokens = u.shape[1:-1].numel()
        weights = self._weights(u.dtype)
        if self.scope == "token" or tokens == 1:
            return gate_of(u, *weights)
        u_STr, counts = u.flatten(1, -2), None
        if (mask := self.mask_for(u_STr)) is not None:
            mask = mask | ~mask.any(1, keepdim=True)  # a sample of padding alone is left as it is
            counts = mask.sum(1).view(-1, 1, 1)
        gate_S1r = gate_of(u_STr, *weights, tokens if counts is None else counts, mask)
        return gate_S1r.reshape(u.shape[0], *(1,) * (u.dim() - 2), u.shape[-1])

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w_in, b_in, w_out, b_out = self.weight_in, self.bias_in, self.weight_out, self.bias_out
        return w_in.to(dtype), b_in.to(dtype), w_out.to(dtype), b_out.to(dtype)

    def mask_for(self, values: Tensor) -> Tensor | None:
        """The padding mask, where it speaks of these values (S, T, ...): cross-attention sees another sequence."""
        mask = self.padding_mask
        return mask.to(values.device) if mask is not None and mask.shape == values.shape[:2] else None


def gate_of(
    u: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    tokens: int | Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The gate of RankGate from its weights: (..., r) token by token, or (S, T, r) -> (S, 1, r) with `tokens`.

    Args:
        tokens: T, or (S, 1, 1) where samples differ; None for one gate a token.
        mask: (S, T), false for padding.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Gate.apply(u, w_in, b_in, w_out, b_out, tokens, mask)
    _, _, hidden = _hidden(u, w_in, b_in)
    score = linear(hidden, w_out, b_out)
    return _token_gate(score)[0] if tokens is None else _sequence_gate(score, tokens, mask)[0]


def _hidden(u: Tensor, w_in: Tensor, b_in: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(1 / rms(u), w_in u, tanh(w_in u / rms(u) + b_in)): dividing behind the product, where there are h numbers, not r."""
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
    return torch.sigmoid(_TOKEN_SLOPE * entropy - 4.0), m


def _sequence_gate(score: Tensor, tokens: int | Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(gate (S, 1, r), ln p (S, T, r), Σ p ln p): sigmoid(4 - c (ln T - H)), p the softmax of the scores over tokens."""
    if mask is not None:
        score = score.masked_fill(~mask.unsqueeze(-1), -math.inf)
    log_p = score.log_softmax(1)
    if mask is not None:
        log_p = log_p.clamp(min=-1e4)  # 0 ln 0 = 0
    negative_entropy_S1r = (log_p.exp() * log_p).sum(1, keepdim=True)
    log_tokens = math.log(tokens) if isinstance(tokens, int) else tokens.to(score.dtype).log()
    return torch.sigmoid(4.0 - _SEQUENCE_SLOPE * (log_tokens + negative_entropy_S1r)), log_p, negative_entropy_S1r


class _Gate(torch.autograd.Function):
    """`gate_of` with its derivative written out: autograd's way makes three times as many passes over (S, T, r).

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
            grad_score = slope.mul_(torch.addcmul(m, m, m, value=-1.0).mul_(score)).mul_(-_TOKEN_SLOPE)
        else:
            log_p, negative_entropy = kept
            grad_score = (log_p - negative_entropy).mul_(log_p.exp()).mul_(slope.mul_(-_SEQUENCE_SLOPE))
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
