"""Gates on the rank coordinates z = A F x (paper sec. 3.4, eq. 4 and App. C.2): one class each, in `GATES`.

A gate that depends on the input is a module, trained with the adapter (`Gate`). One that does not is a mask that the
layer stores and folds into the weight, or nothing at all.

    shapes   S samples · T tokens · r rank · h hidden units

To add a gate, subclass `Gate` with `forward(u)` and register it: `GATES["relu"] = ReluGate`.
"""

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from foura.adapter.entropy import entropy_gate

GATE_SCOPES = ("sequence", "token")
OPEN = 0.5  # a rank counts as open where its gate is above this


class GateSettings(Protocol):
    """The fields of FouraConfig that gates are made from."""

    @property
    def gate_scope(self) -> str: ...


class GateKind(Protocol):
    """A value of `GATES`."""

    depends_on_input: bool  # trained, refused by merging until frozen

    def make(self, rank: int, config: GateSettings) -> "Gate | Tensor | None":
        """The module of an input-dependent gate, a boolean mask (r,), or None."""


class Gate(nn.Module):
    """Base class of the gates that depend on the input; `forward(u)` gives the gates.

    u holds rank coordinates, shape (S, ..., r): all axes between the first and the last are tokens. It has the dtype of
    the model, and for the DFT is the magnitude of z. The result has u's dtype and broadcasts against it: (S, ..., r) for
    one gate per token, (S, 1, ..., 1, r) for one per sample.

    Parameters may be held directly or in modules; they are saved as `foura_gate.<name>`.

    Raises:
        ValueError: an unknown scope.
    """

    depends_on_input: ClassVar[bool] = True

    def __init__(self, rank: int, scope: str) -> None:
        super().__init__()
        if scope not in GATE_SCOPES:
            raise ValueError(f"gate_scope={scope!r} is not known; choose one of {', '.join(GATE_SCOPES)}")
        self.scope = scope
        self.padding_mask: Tensor | None = None  # (S, T), true for real tokens; see model.attention_mask

    @classmethod
    def make(cls, rank: int, config: GateSettings) -> "Gate":
        return cls(rank, config.gate_scope)

    def forward(self, u: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward(u)")

    def mask_for(self, values: Tensor) -> Tensor | None:
        """The padding mask (S, T) if it fits these values (S, T, ...): cross-attention sees another sequence."""
        mask = self.padding_mask
        return mask.to(values.device) if mask is not None and mask.shape == values.shape[:2] else None


class EntropyGate(Gate):
    """g = sigmoid(4 - c D): D says how far the scores MLP(u) are from saying nothing; u is normalised by its RMS.

    The paper fixes an MLP on the rank coordinates, an entropy, a sigmoid, and soft gating in training and at inference.
    Eq. 4 as printed (sigmoid(entropy) == 1) can never be trained, and how r gates come out of one entropy is not said.
    This is therefore OUR RECONSTRUCTION; its constants follow the soft-gating recipe that the paper points to: a sigmoid
    between +4 (open, 0.982) and -4 (closed, 0.018). `entropy` has the equations.

    scope="sequence": one gate per sample and rank. A rank that fires alike at all tokens is open, one that singles out
    few tokens closes. D, unlike H / ln T, does not change when a sequence is repeated, so gates do not depend on length.
    scope="token": one gate per token and rank. It looks at one token alone, so it is causal. A sample of a single token,
    which has no entropy over tokens, is gated so too.

    u is divided by its root mean square over the ranks, so the gate does not depend on the scale of A or of x, and its
    scores start moderate: near the maximum of the entropy, hence open (about 0.95), but off the flat top, where the
    gradient would be zero.
    """

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
        """nn.Linear's start, with the last layer three times as wide: scores then have about unit variance.

        At nn.Linear's own width the entropy starts so flat at its maximum that the gates hardly ever leave it.
        """
        for weight, bias, width in ((self.weight_in, self.bias_in, 1.0), (self.weight_out, self.bias_out, 3.0)):
            bound = 1.0 / math.sqrt(weight.shape[1])
            weight.uniform_(-width * bound, width * bound)
            bias.uniform_(-bound, bound)

    def forward(self, u: Tensor) -> Tensor:
        """Gates in (0, 1) for u (S, ..., r): (S, 1, ..., 1, r) for scope "sequence", (S, ..., r) for scope "token"."""
        if torch.is_autocast_enabled(u.device.type):
            with torch.autocast(u.device.type, enabled=False):
                return self.forward(u)
        if u.dtype not in (torch.float32, torch.float64):  # an entropy is a difference of logs: not in half precision
            return self.forward(u.float()).to(u.dtype)
        tokens = math.prod(u.shape[1:-1])  # numel() would fix a length that an export leaves open
        weights = self._weights(u.dtype)
        if self.scope == "token" or tokens == 1:
            return entropy_gate(u, *weights)
        u_STr, counts = u.flatten(1, -2), None
        if (mask := self.mask_for(u_STr)) is not None:
            mask = mask | ~mask.any(1, keepdim=True)  # a sample of padding alone is left as it is
            counts = mask.sum(1).view(-1, 1, 1)
        gate_S1r = entropy_gate(u_STr, *weights, tokens if counts is None else counts, mask)
        return gate_S1r.reshape(u.shape[0], *(1,) * (u.dim() - 2), u.shape[-1])

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w_in, b_in, w_out, b_out = self.weight_in, self.bias_in, self.weight_out, self.bias_out
        return w_in.to(dtype), b_in.to(dtype), w_out.to(dtype), b_out.to(dtype)


class FrozenMask:
    """A gate of one fixed bit per rank, calibrated by `freeze_gates` (sec. 3.4, "frozen mask"); all open at first."""

    depends_on_input: ClassVar[bool] = False

    @staticmethod
    def make(rank: int, config: GateSettings) -> Tensor:
        return torch.ones(rank, dtype=torch.bool)


class NoGate:
    """g = 1."""

    depends_on_input: ClassVar[bool] = False

    @staticmethod
    def make(rank: int, config: GateSettings) -> None:
        return None


# The choices of `FouraConfig.gate`; the first is the default.
GATES: dict[str, GateKind] = {"none": NoGate, "adaptive": EntropyGate, "frozen": FrozenMask}
