"""The adaptive rank gate G (paper sec. 3.4, eq. 4 and App. C.2).

What the paper fixes: an MLP on the rank coordinates z = A F x, an entropy, a sigmoid, soft gating in training and at
inference. Eq. 4 as printed (sigmoid(entropy) == 1) can never be trained, and how r gates come out of an entropy is not
said. What is built here is therefore OUR RECONSTRUCTION; its constants follow the soft-gating recipe that the paper
points to: g = sigmoid(8 H / H_max - 4), in [0.018, 0.982].

    shapes   S samples · T tokens · r rank · h hidden units
"""

import math

import torch
from torch import Tensor, nn

GATES = ("none", "adaptive", "frozen")
GATE_SCOPES = ("sequence", "token")
OPEN = 0.5  # a rank counts as open where its gate is above this


class RankGate(nn.Module):
    """g = sigmoid(8 H / H_max - 4), with H the entropy of MLP(u) and u the normalised rank coordinates.

    scope="sequence": one gate per sample and rank. H is the entropy, over the tokens of the sample, of the softmax of
    the rank's scores; H_max = ln T. A rank that fires alike everywhere is open, one that singles out few tokens closes.
    scope="token": one gate per token and rank. H is the binary entropy of the sigmoid of the score; H_max = ln 2. It
    looks at one token alone, so it is causal. A sample of a single token has no entropy over tokens and is gated so too.

    u is divided by its root mean square over the ranks, so the gate does not depend on the scale of A or of x, and its
    scores start moderate: near the maximum of the entropy, hence open (about 0.95), but off the flat top, where the
    gradient would be zero.
    """

    def __init__(self, rank: int, scope: str) -> None:
        super().__init__()
        if scope not in GATE_SCOPES:
            raise ValueError(f"gate_scope={scope!r} is not known; choose one of {', '.join(GATE_SCOPES)}")
        self.scope = scope
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
        with torch.autocast(u.device.type, enabled=False):  # an entropy is a difference of logs: keep it in float32
            dtype = torch.promote_types(u.dtype, torch.float32)
            u_r = u.to(dtype)
            u_r = u_r * torch.rsqrt(u_r.square().mean(-1, keepdim=True) + torch.finfo(dtype).tiny)
            hidden_h = torch.tanh(nn.functional.linear(u_r, self.weight_in.to(dtype), self.bias_in.to(dtype)))
            score = nn.functional.linear(hidden_h, self.weight_out.to(dtype), self.bias_out.to(dtype))
            tokens = math.prod(score.shape[1:-1])
            if self.scope == "token" or tokens == 1:
                openness = _binary_entropy(score) / math.log(2)
            else:
                openness = _token_entropy(score) / math.log(tokens)
            return torch.sigmoid(8.0 * openness - 4.0).to(u.dtype)


def _token_entropy(score: Tensor) -> Tensor:
    """Entropy over the tokens of softmax(score), in nats: (S, ..., r) -> (S, 1, ..., 1, r)."""
    log_p_STr = score.flatten(1, -2).log_softmax(dim=1)
    entropy_S1r = -(log_p_STr.exp() * log_p_STr).sum(dim=1, keepdim=True)
    return entropy_S1r.reshape(score.shape[0], *(1,) * (score.dim() - 2), score.shape[-1])


def _binary_entropy(score: Tensor) -> Tensor:
    """Entropy of a Bernoulli with log-odds `score`, elementwise, in nats."""
    log_p, log_q = nn.functional.logsigmoid(score), nn.functional.logsigmoid(-score)
    return -(log_p.exp() * log_p + log_q.exp() * log_q)
