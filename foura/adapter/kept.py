"""How long folded factors stay valid.

As long as A and B are the same parameters at the same address with autograd's counter of in-place writes
unchanged, and strength, mask and dtype are the same: over micro-batches, the recomputation of gradient checkpointing,
evaluation and decoding. A write through `.data` does not move that counter, so in addition
- a step of any torch optimizer moves it for the parameters that the optimizer holds (some write through `.data`);
- after a backward pass a parameter is compared with what was folded (on the CPU), or has to hold its gradient still
  (elsewhere, where comparing would wait for the device): a loop that updates parameters by hand clears their gradients;
- `eval()`, the switch to training, `to()`, loading and swapping forget all factors; `FouraLayer.forget_factors` by hand.
"""

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from foura.adapter.fold import Fold

_watched: dict[int, "weakref.ref[Tensor]"] = {}  # parameters with kept factors, by id
_hooks: list[Any] = []  # on all optimizers, once the first factor is kept


class Kept:
    """One folded factor of a layer, and what it was folded from."""

    __slots__ = (
        "alias", "dtype", "factor", "fold", "graph", "mask_version", "number", "part", "pointer", "seen", "source", "version",
    )  # fmt: skip

    def __init__(self, source: Tensor, factor: Tensor, fold: Fold, number: int, before: "Kept | None" = None) -> None:
        self.source, self.version, self.pointer = source, source._version, source.data_ptr()
        same = before is not None and before.source is source and before.pointer == self.pointer
        # while the alias lives, no other tensor can get its address
        self.alias: Tensor = before.alias if before is not None and same else source.detach()
        self.factor, self.fold, self.number, self.part = factor, fold, number, fold.parts[number]
        self.dtype, self.graph, self.seen = fold.dtype, factor.requires_grad, fold.backwards
        mask = self.part.mask
        self.mask_version = None if mask is None else mask._version

    def holds(self, source: Tensor, dtype: torch.dtype, gradients: bool) -> bool:
        """True if the factor is still that of `source`, and has gradients if they are wanted and `source` has them."""
        return (
            self.source is source
            and self.version == source._version
            and self.pointer == source.data_ptr()
            and self.dtype is dtype
            and (self.graph == source.requires_grad or not gradients)
            and (self.seen == self.fold.backwards or self._unchanged(source))
        )

    def holds_part(self, scaling: float, mask: Tensor | None) -> bool:
        """True if strength and mask are those that were multiplied in."""
        part = self.part
        return part.scaling == scaling and part.mask is mask and (mask is None or mask._version == self.mask_version)

    def doubt(self) -> None:
        """Check the parameter's values before the factor is used again."""
        self.seen = -1

    def _unchanged(self, source: Tensor) -> bool:
        """True if nothing seems to have been written to `source` past autograd's counter."""
        if torch._C._current_graph_task_id() != -1:  # within a backward pass
            return True
        if not (self.same_values(source) if self.fold.stacked is not None else source.grad is not None):
            return False
        self.seen = self.fold.backwards
        return True

    def same_values(self, source: Tensor) -> bool:
        """True unless `source` differs from what was folded; off the CPU that is not looked at."""
        seen = self.fold.source(self.number)
        return seen is None or torch.equal(seen, source)


def watch(source: Tensor) -> None:
    """See to it that an optimizer's step moves autograd's counter of this parameter."""
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_count_writes))
    if id(source) not in _watched:
        _watched[id(source)] = weakref.ref(source, partial(_forget, id(source)))


def _forget(number: int, _reference: Any) -> None:
    _watched.pop(number, None)


def _count_writes(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """After a step: move the counter of watched parameters, which optimizers that write to `.data` do not move."""
    if torch.compiler.is_compiling():
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    written: list[Any] = [one for one in parameters if (known := _watched.get(id(one))) is not None and known() is one]
    if written:
        torch.autograd.graph.increment_version(written)
