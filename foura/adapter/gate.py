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
        score = self._score(u)
        if self.scope == "token" or score.shape[1:-1].numel() == 1:
            return token_gate(score)
        score_STr = score.flatten(1, -2)
        tokens: int | Tensor = score_STr.shape[1]
        if (mask := self.mask_for(score_STr)) is not None:
            score_STr, tokens = _without_padding(score_STr, mask)
        shape_S1r = (score.shape[0], *(1,) * (score.dim() - 2), score.shape[-1])
        return sequence_gate(score_STr, tokens).reshape(shape_S1r)

    def mask_for(self, values: Tensor) -> Tensor | None:
        """The padding mask, where it speaks of these values (S, T, ...): cross-attention sees another sequence."""
        mask = self.padding_mask
        return mask.to(values.device) if mask is not None and mask.shape == values.shape[:2] else None

    def _score(self, u: Tensor) -> Tensor:
        """MLP(u / rms(u)); the division is moved behind the first product, where there are h numbers and not r."""
        w_in, b_in, w_out, b_out = (
            parameter if parameter.dtype == u.dtype else parameter.to(u.dtype)
            for parameter in (self.weight_in, self.bias_in, self.weight_out, self.bias_out)
        )
        norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        inverse_rms = torch.rsqrt(norm * norm / u.shape[-1] + _RMS_EPS)
        return linear(torch.addcmul(b_in, linear(u, w_in), inverse_rms).tanh(), w_out, b_out)


def sequence_gate(score: Tensor, tokens: int | Tensor) -> Tensor:
    """sigmoid(4 - c (ln T - H)) for scores (S, T, r) -> (S, 1, r); `tokens` is T, or (S, 1, 1) where samples differ."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        log_p = score.log_softmax(1)
        negative_entropy_S1r = (log_p.exp() * log_p.clamp(min=-1e4)).sum(1, keepdim=True)
    else:
        negative_entropy_S1r = _NegativeEntropy.apply(score)
    log_tokens = math.log(tokens) if isinstance(tokens, int) else tokens.to(score.dtype).log()
    return torch.sigmoid(4.0 - _SEQUENCE_SLOPE * (log_tokens + negative_entropy_S1r))


def token_gate(score: Tensor) -> Tensor:
    """sigmoid(4 - c (ln 2 - H)), elementwise, with H the entropy of a Bernoulli with log-odds `score`."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return torch.sigmoid(_TOKEN_SLOPE * _binary_entropy(score)[0] - 4.0)
    return _TokenGate.apply(score)


def _binary_entropy(score: Tensor) -> tuple[Tensor, Tensor]:
    """(H, m) with m = sigmoid(|score|), the larger probability: H = -ln m + |score| (1 - m), stable for any score."""
    size = score.abs()
    m = torch.sigmoid(size)
    return torch.addcmul(size, size, m, value=-1.0) - m.log(), m


def _without_padding(score: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scores with padded tokens at minus infinity, and the count of real ones (S, 1, 1); all-padding samples are left."""
    mask_ST1 = (mask | ~mask.any(1, keepdim=True)).unsqueeze(-1)
    return score.masked_fill(~mask_ST1, -math.inf), mask_ST1.sum(1, keepdim=True)


class _NegativeEntropy(torch.autograd.Function):
    """Σ p ln p over the tokens, p = softmax(score): (S, T, r) -> (S, 1, r). Its derivative is p (ln p - Σ p ln p)."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        log_p = score.log_softmax(1).clamp_(min=-1e4)  # 0 ln 0 = 0 for padded tokens
        p = log_p.exp()
        result_S1r = (p * log_p).sum(1, keepdim=True)
        ctx.save_for_backward(log_p, result_S1r)
        return result_S1r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        log_p, result_S1r = ctx.saved_tensors
        return (log_p - result_S1r).mul_(log_p.exp()).mul_(grad)


class _TokenGate(torch.autograd.Function):
    """sigmoid(c H(score) - 4) elementwise; dH/dscore = -score m (1 - m)."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        entropy, m = _binary_entropy(score)
        gate = entropy.mul_(_TOKEN_SLOPE).sub_(4.0).sigmoid_()
        ctx.save_for_backward(score, m, gate)
        return gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        score, m, gate = ctx.saved_tensors
        slope = torch.addcmul(m, m, m, value=-1.0).mul_(score).mul_(-_TOKEN_SLOPE)
        return slope.mul_(torch.addcmul(gate, gate, gate, value=-1.0)).mul_(grad)
