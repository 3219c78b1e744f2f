"""Forms of the adaptive gate: one class each, in `GATE_FORMS`. All read scores from one small network on z.

    u' = u / rms(u)      score = w_out tanh(w_in u' + b_in) + b_out      gate = the form's function of the scores

u is z, or its magnitude for the DFT. Dividing by its root mean square over the ranks makes a gate independent of the scale
of A and of x. scope="token" gates each token by its own score, so it is causal. scope="sequence" gives one gate per sample:
the entropy form compares a rank's scores over the tokens, every other form takes their mean over the real tokens, so no
gate depends on length or padding. Every form has both scopes.

The paper fixes an MLP on the rank coordinates, an entropy, a sigmoid, and soft gating in training and at inference. Eq. 4 as
printed (sigmoid(entropy) == 1) can never be trained, and how r gates come out of one entropy is not said. Every form here is
therefore OUR RECONSTRUCTION. To add one, subclass `NetworkGate` and register it: `GATE_FORMS["mine"] = MyGate`.

    shapes   S samples · T tokens · r rank · h hidden units
"""

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from foura.adapter.entropy import SEQUENCE_SLOPE, entropy_gate, hidden_units
from foura.adapter.gate import OPEN, Gate, samples_and_tokens
from foura.adapter.kernels import takes
from foura.adapter.real_tokens import real_tokens
from foura.adapter.tracing import exported

if TYPE_CHECKING:
    from foura.adapter.kernels.gate import GateCall


class NetworkGate(Gate):
    """A gate from the scores of a network with one hidden layer; computed in float32 or better, without autocast.

    `_gates(scores)` is the form: (S, ..., r) to gates in [0, 1] of that shape, and the share that is paid for where it is
    another (see `Gate.priced`).
    """

    has_price: ClassVar[bool] = True
    start_width: ClassVar[float] = 3.0  # of the last layer, in nn.Linear's: scores then have about unit variance
    start_bias: ClassVar[float | None] = 2.0  # open: a sigmoid of 0.88; None: nn.Linear's random start
    kernels: ClassVar[str | None] = None  # the form's name in `foura.adapter.kernels`; not inherited

    def __init_subclass__(cls) -> None:
        """A subclass may compute other gates than those of its base's kernels."""
        cls.kernels = vars(cls).get("kernels")

    def __init__(self, rank: int, scope: str) -> None:
        super().__init__(rank, scope)
        hidden = max(4, rank // 4)
        self.weight_in = nn.Parameter(torch.empty(hidden, rank))
        self.bias_in = nn.Parameter(torch.empty(hidden))
        self.weight_out = nn.Parameter(torch.empty(rank, hidden))
        self.bias_out = nn.Parameter(torch.empty(rank))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """nn.Linear's start, with the last layer `start_width` times as wide and its bias at `start_bias`."""
        for weight, bias, width in (
            (self.weight_in, self.bias_in, 1.0),
            (self.weight_out, self.bias_out, self.start_width),
        ):
            bound = 1.0 / math.sqrt(weight.shape[1])
            weight.uniform_(-width * bound, width * bound)
            bias.uniform_(-bound, bound)
        if self.start_bias is not None:
            self.bias_out.fill_(self.start_bias)

    def forward(self, u: Tensor) -> Tensor:
        """Gates in [0, 1] for u (S, ..., r): (S, 1, ..., 1, r) for scope "sequence", (S, ..., r) for scope "token"."""
        if torch.is_autocast_enabled(u.device.type):
            with torch.autocast(u.device.type, enabled=False):
                return self.forward(u)
        if u.dtype not in (torch.float32, torch.float64):  # an entropy is a difference of logs: not in half precision
            return self.forward(u.float()).to(u.dtype)
        return self.priced(*self._both(u))

    def _both(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """(gates, share to pay for or None) of u in float32 or float64."""
        w_in, b_in, w_out, b_out = self._weights(u.dtype)
        score = linear(hidden_units(u, w_in, b_in), w_out, b_out)
        return self._gates(self._pooled(score) if self.scope == "sequence" and u.dim() > 2 else score)

    def _gates(self, score: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError(f"{type(self).__name__} has no _gates(score)")

    def _pooled(self, score: Tensor) -> Tensor:
        """Scores (S, ..., r) to their mean over the sample's real tokens, (S, 1, ..., 1, r)."""
        score_STr = score.flatten(1, -2)
        if (mask := self._real_tokens(score_STr)) is None:
            mean = score_STr.mean(1)
        else:
            mean = score_STr.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1) / mask.sum(1, keepdim=True)
        return mean.reshape(score.shape[0], *(1,) * (score.dim() - 2), score.shape[-1])

    def _real_tokens(self, u_STr: Tensor) -> Tensor | None:
        """(S, T), true for real tokens; a sample of padding alone is left as it is. None without padding."""
        mask = self.mask_for(u_STr)
        return None if mask is None else real_tokens(mask)

    def kernel_call(self, z: Tensor) -> "GateCall | None":
        """`forward` and the product with z in one kernel; not while hooks want to see the gates, or open ranks are paid."""
        form, hooked = self.kernels, self._forward_hooks or self._forward_pre_hooks
        if form is None or hooked or exported() or self.charges() or not takes(z, self.weight_in.shape[1]):
            return None
        from foura.adapter.kernels.gate import GateCall  # Triton is there

        by_token = self.scope == "token" or samples_and_tokens(z)[1] == 1
        mask = None if by_token else self._real_tokens(z.flatten(1, -2))
        return GateCall((self.weight_in, self.bias_in, self.weight_out, self.bias_out), form, by_token, mask)

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w_in, b_in, w_out, b_out = self.weight_in, self.bias_in, self.weight_out, self.bias_out
        return w_in.to(dtype), b_in.to(dtype), w_out.to(dtype), b_out.to(dtype)


class EntropyGate(NetworkGate):
    """g = sigmoid(4 - c D): D says how far the scores are from saying nothing. `entropy` has the equations.

    Its constants follow the soft-gating recipe that the paper points to: a sigmoid between +4 (open, 0.982) and -4 (closed,
    0.018).

    scope="sequence": one gate per sample and rank. A rank that fires alike at all tokens is open, one that singles out
    few tokens closes. D, unlike H / ln T, does not change when a sequence is repeated, so gates do not depend on length.
    scope="token": one gate per token and rank. It looks at one token alone, so it is causal. A sample of a single token,
    which has no entropy over tokens, is gated so too.

    Scores start moderate: near the maximum of the entropy, hence open (about 0.95), but off the flat top, where the
    gradient would be zero. At nn.Linear's own width the entropy starts so flat that the gates hardly ever leave it.
    """

    start_bias: ClassVar[float | None] = None
    kernels: ClassVar[str | None] = "entropy"

    def _both(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = math.prod(u.shape[1:-1])  # numel() would fix a length that an export leaves open
        weights = self._weights(u.dtype)
        if self.scope == "token" or tokens == 1:
            return entropy_gate(u, *weights), None
        u_STr, counts = u.flatten(1, -2), None
        if (mask := self._real_tokens(u_STr)) is not None:
            counts = mask.sum(1).view(-1, 1, 1)
        gate_S1r = entropy_gate(u_STr, *weights, tokens if counts is None else counts, mask)
        return gate_S1r.reshape(u.shape[0], *(1,) * (u.dim() - 2), u.shape[-1]), None


class SigmoidGate(NetworkGate):
    """g = sigmoid(score), 0.88 at the start: a soft gate that each rank has for itself."""

    def _gates(self, score: Tensor) -> tuple[Tensor, Tensor | None]:
        return score.sigmoid(), None


class SoftmaxGate(NetworkGate):
    """g_i = sigmoid(4 + c (ln p_i + H)), p the softmax of the scores over the ranks, H its entropy, c = 8 / ln 16.

    exp(H) is the number of ranks that p spreads over, so exp(-H) is the share of a typical rank of them, and r gates come
    out of one entropy by comparing each rank with it: a share like it is open (0.98), a quarter of it half open, a
    sixteenth closed (0.02). Equal scores open every rank, and some rank is always open. At rank 1 the gate is open.
    """

    start_width: ClassVar[float] = 1.0
    start_bias: ClassVar[float | None] = 0.0  # a softmax does not see what all scores share
    kernels: ClassVar[str | None] = "softmax"

    def _gates(self, score: Tensor) -> tuple[Tensor, Tensor | None]:
        log_p = score.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True)
        return torch.sigmoid(4.0 + SEQUENCE_SLOPE * (log_p + entropy)), None


class HardGate(NetworkGate):
    """g = 1 where sigmoid(score) > 0.5, else 0, with the sigmoid's gradient (straight-through, Bengio et al. 2013)."""

    def _gates(self, score: Tensor) -> tuple[Tensor, Tensor | None]:
        soft = score.sigmoid()
        hard = (soft > OPEN).to(soft.dtype)
        return hard + (soft - soft.detach()), None  # the difference is zero to the last bit


class HardConcreteGate(NetworkGate):
    """A stretched and clipped binary concrete variable with log-odds `score` (Louizos, Welling & Kingma 2018, eq. 10-13).

    Training draws it, with noise of torch's generator of the device, as dropout does; otherwise it is the variable at its
    median without noise, exactly 0 or 1 for log-odds beyond 2.4. Its price is that of L0: the probability of not being 0.
    """

    temperature: ClassVar[float] = 2.0 / 3.0
    low: ClassVar[float] = -0.1  # of the stretched interval; what falls outside [0, 1] is clipped
    high: ClassVar[float] = 1.1

    def _gates(self, score: Tensor) -> tuple[Tensor, Tensor | None]:
        log_odds = score
        if self.training and not exported():
            noise = torch.rand_like(score).clamp(1e-6, 1.0 - 1e-6)
            log_odds = (noise.log() - (1.0 - noise).log() + score) / self.temperature
        gate = (log_odds.sigmoid() * (self.high - self.low) + self.low).clamp(0.0, 1.0)
        return gate, torch.sigmoid(score - self.temperature * math.log(-self.low / self.high))


# The choices of `FouraConfig.gate_form`; an adapter that was saved without the field has the first.
GATE_FORMS: dict[str, type[Gate]] = {
    "entropy": EntropyGate,
    "sigmoid": SigmoidGate,
    "softmax": SoftmaxGate,
    "hard": HardGate,
    "hard_concrete": HardConcreteGate,
}
