"""Base class of the gates that depend on the input, and the price of open ranks.

shapes   S samples · T tokens · r rank
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from foura.adapter.tracing import exported

if TYPE_CHECKING:
    from foura.adapter.kernels.gate import GateCall

GATE_SCOPES = ("sequence", "token")
OPEN = 0.5  # a rank counts as open where its gate is above this


def samples_and_tokens(values: Tensor) -> tuple[int, int]:
    """S and T of values (S, ..., width): all axes between the first and the last are tokens."""
    # not a reshape to -1, which says nothing about an empty batch, nor numel(), which fixes a length that a graph leaves open
    return values.shape[0] if values.dim() > 1 else 1, math.prod(values.shape[1:-1])


class GateSettings(Protocol):
    """The fields of FouraConfig that gates are made from."""

    @property
    def gate_scope(self) -> str: ...
    @property
    def gate_form(self) -> str: ...
    @property
    def gate_sparsity(self) -> float: ...


class Gate(nn.Module):
    """Base class of the gates that depend on the input; `forward(u)` gives the gates.

    u holds rank coordinates, shape (S, ..., r): all axes between the first and the last are tokens. It has the dtype of
    the model, and for the DFT is the magnitude of z. The result has u's dtype and broadcasts against it: (S, ..., r) for
    one gate per token, (S, 1, ..., 1, r) for one per sample.

    Parameters may be held directly or in modules; they are saved as `foura_gate.<name>`. A gate whose forward returns
    `self.priced(gates)` sets `has_price`, and then takes `FouraConfig.gate_sparsity`.

    Raises:
        ValueError: an unknown scope, or a price for a gate without one.
    """

    depends_on_input: ClassVar[bool] = True
    has_price: ClassVar[bool] = False
    # of the last training call, for the recomputation of gradient checkpointing; pickled models of before have none
    kept_mask: Tensor | None = None
    masks_were_kept: ClassVar[bool] = False  # by any gate, so far: walking through a model takes as long as some layers

    def __init__(self, rank: int, scope: str) -> None:
        super().__init__()
        if scope not in GATE_SCOPES:
            raise ValueError(f"gate_scope={scope!r} is not known; choose one of {', '.join(GATE_SCOPES)}")
        self.scope = scope
        self.price = 0.0  # FouraConfig.gate_sparsity
        self.padding_mask: Tensor | None = None  # (S, T), true for real tokens; see padding.attention_mask

    @classmethod
    def make(cls, rank: int, config: GateSettings) -> Self:
        gate = cls(rank, config.gate_scope)
        if config.gate_sparsity and not cls.has_price:
            raise ValueError(f"gate_sparsity={config.gate_sparsity:g}, but {cls.__name__} has no price for open ranks")
        gate.price = config.gate_sparsity
        return gate

    def __getstate__(self) -> dict[str, Any]:
        # a copy recomputes nothing
        return {name: value for name, value in self.__dict__.items() if name != "kept_mask"}

    def forward(self, u: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward(u)")

    def kernel_call(self, z: Tensor) -> "GateCall | None":
        """g(z) ⊙ z by kernels, if they take rank coordinates of the dtype, device and leading axes of z (S, ..., q)."""
        return None

    def mask_for(self, values: Tensor) -> Tensor | None:
        """The padding mask (S, T) if it fits these values (S, T, ...): cross-attention sees another sequence."""
        mask = self._current_mask()
        if mask is None or values.dim() < 3 or mask.shape != values.shape[:2]:
            return None
        return mask.to(values.device)

    def _current_mask(self) -> Tensor | None:
        """The mask of this call, or of the call that the backward pass recomputes."""
        if self.padding_mask is not None or self.kept_mask is None:
            return self.padding_mask
        if torch.compiler.is_compiling():  # asking for the backward pass would break the graph
            return self.kept_mask if self.training else None
        if torch._C._current_graph_task_id() != -1:  # within a backward pass
            return self.kept_mask
        if self.training:  # a new call, without a mask
            self.kept_mask = None
        return None

    def charges(self) -> bool:
        """True if the next call has to add the price of open ranks to its gradient."""
        return self.price > 0.0 and self.training and torch.is_grad_enabled() and not exported()

    def priced(self, gates: Tensor, open_share: Tensor | None = None) -> Tensor:
        """`gates` unchanged; while training, their backward also descends `price` times the mean gate.

        The loss that an optimizer then descends is its own plus λ Σ_layers mean(g), in any training loop: only the gradient
        is added, as mixture-of-experts layers add that of their balance loss. It is added as it is, so
        - whatever multiplies the loss does not multiply the price. GradScaler divides gradients by its scale, some 10⁴,
          after the backward pass, and the price with them: train in float32 or bfloat16 instead. Of N accumulated
          micro-batches whose loss is divided by N, the price counts N times: set λ / N;
        - DDP averages gradients, hence prices, over processes; gradient checkpointing changes nothing.

        Args:
            open_share: what is paid for in place of the gates, such as the probability of being open; of their shape.
        """
        if not self.charges():
            return gates
        mask = self.mask_for(gates)
        return _Price.apply(gates, open_share, self.price, mask)


class _Price(torch.autograd.Function):
    """(gates, paid, …) -> gates; the gradient of `paid`, or else of the gates, gains price / number of gates of real tokens."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, paid: Tensor | None, price: float, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if mask is None else (mask,)))
        ctx.price, ctx.by_gates = price, paid is None
        return gates.view_as(gates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        real = torch.ones_like(grad)
        for mask in ctx.saved_tensors:
            real = real * mask.reshape(*mask.shape, *(1,) * (grad.dim() - 2))
        cost = real * (ctx.price / real.sum().clamp(min=1))
        return (grad + cost, None, None, None) if ctx.by_gates else (grad, cost, None, None)
