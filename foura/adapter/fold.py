"""Folding the transform into A and B, for any number of layers at once, with gradients.

    down = A F        up = s F⁻¹ B diag(m)        (s: alpha / r and the adapter's strength; m: the mask of a frozen gate)

F acts on each rank separately. Layers of one width are therefore stacked along their ranks, transformed in one pass and cut
into views again: a dozen small kernels for each distinct width, not for each layer. `keep` decides what folds together and
how long it stays valid.

One autograd node per fold. Folding is linear, so its backward is the adjoint map on the stacked gradients. It saves no
tensors and may run any number of times, once per backward pass, with the gradients of the layers that took part; the others
get none.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foura.adapter.constants import constant
from foura.adapter.transforms import Transform

DOWN, UP = "down", "up"  # the sides


class Part(NamedTuple):
    """One layer's share of a fold."""

    rank: int
    scaling: float = 1.0
    mask: Tensor | None = None  # (r,), of a frozen gate


@dataclass
class Fold:
    """Folding one side, A (down) or B (up), of layers that have one width.

    Attributes:
        backwards: backward passes that have run through the fold; its factors are checked again after each.
        stacked: A's (R, N) or B's (M, R) as they were folded, to compare with; None off the CPU.
    """

    side: str
    transform: Transform
    dtype: torch.dtype
    parts: tuple[Part, ...]
    backwards: int = 0
    stacked: Tensor | None = field(default=None, repr=False)

    def __call__(self, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The factors in `dtype`: down (q, N) for each A, or up (M, q) for each B, transposed views of (q, M)."""
        rows = self.rows(sources).split([self.transform.parts * part.rank for part in self.parts])
        return rows if self.side == DOWN else tuple([block.T for block in rows])

    def rows(self, sources: Sequence[Tensor]) -> Tensor:
        """The factors of all layers as one contiguous block in `dtype`: (Σq, N) of A's, (Σq, M) of B's, layer by layer."""
        stacked = torch.cat(tuple(sources), dim=0 if self.side == DOWN else 1)
        self.stacked = stacked if stacked.device.type == "cpu" else None
        wide = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
        with _full_precision(wide):
            if self.side == DOWN:
                return self._by_layer(self.transform.fold_down(wide)).to(self.dtype).contiguous()
            rows = self.transform.fold_up(wide).T
            if (weights := _weights(self.parts, self.transform.parts, rows)) is not None:
                rows = rows * weights
            return self._by_layer(rows).to(self.dtype).contiguous()

    def adjoint(self, grads: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
        """Gradients of the A's or B's in `dtype`, from those of the factors; None where there is none."""
        used = [number for number, grad in enumerate(grads) if grad is not None]
        result: list[Tensor | None] = [None] * len(grads)
        if used:
            rows = [grad if self.side == DOWN else grad.T for grad in grads if grad is not None]
            parts = tuple([self.parts[number] for number in used])
            found = self.adjoint_of_rows(rows[0] if len(rows) == 1 else torch.cat(rows), parts, dtype)
            for number, grad in zip(used, found, strict=True):
                result[number] = grad
        return result

    def adjoint_of_rows(self, rows: Tensor, parts: tuple[Part, ...], dtype: torch.dtype) -> Sequence[Tensor]:
        """Gradients of the A's or B's of `parts`, from that of their `rows`."""
        rows = self._by_part(rows.to(torch.promote_types(rows.dtype, torch.float32)), parts)
        with _full_precision(rows):
            if self.side == DOWN:
                found = self.transform.fold_down_adjoint(rows).to(dtype)
                return (found,) if len(parts) == 1 else found.split([part.rank for part in parts])
            if (weights := _weights(parts, self.transform.parts, rows)) is not None:
                rows = rows * weights
            return _columns(self.transform.fold_up_adjoint(rows.T).to(dtype), parts)

    def source(self, number: int) -> Tensor | None:
        """The A or B of layer `number` as it was folded."""
        if self.stacked is None:
            return None
        start = sum(part.rank for part in self.parts[:number])
        return self.stacked.narrow(0 if self.side == DOWN else 1, start, self.parts[number].rank)

    def _by_layer(self, rows: Tensor) -> Tensor:
        """Folded rows (Σq, ...), ordered by real part and then by layer, in the order of layers."""
        count, ranks = self.transform.parts, [part.rank for part in self.parts]
        if count == 1 or len(ranks) == 1:
            return rows
        blocks = [block.split(ranks) for block in rows.chunk(count)]
        return torch.cat([block[number] for number in range(len(ranks)) for block in blocks])

    def _by_part(self, rows: Tensor, parts: tuple[Part, ...]) -> Tensor:
        """The inverse of `_by_layer`."""
        count = self.transform.parts
        if count == 1 or len(parts) == 1:
            return rows
        blocks = rows.split([part.rank for part in parts for _ in range(count)])
        return torch.cat([blocks[count * number + part] for part in range(count) for number in range(len(parts))])


def _full_precision(tensor: Tensor) -> Any:
    """A context without autocast."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _columns(grad_B: Tensor, parts: tuple[Part, ...]) -> Sequence[Tensor]:
    """Stacked gradients (M, R, ...) to contiguous ones (M, r, ...), by one copy where ranks are equal."""
    if len(parts) == 1:
        return (grad_B,)
    rows = grad_B.transpose(0, 1)
    ranks = [part.rank for part in parts]
    if len(set(ranks)) == 1:
        return rows.unflatten(0, (len(ranks), ranks[0])).transpose(1, 2).contiguous().unbind(0)
    return [block.transpose(0, 1).contiguous() for block in rows.split(ranks)]


def _weights(parts: tuple[Part, ...], real: int, rows: Tensor) -> Tensor | float | None:
    """Strength and mask of each row, as a column, a number where all are alike, or None where all are 1.

    Rows are ordered by real part and then by layer and rank: so `fold_up` and its adjoint have them.
    """
    masked, scale = any(part.mask is not None for part in parts), parts[0].scaling
    if not masked and all(part.scaling == scale for part in parts):
        return None if scale == 1.0 else scale
    column = _scales(tuple((part.scaling, part.rank) for part in parts), rows.dtype, rows.device)
    if masked:
        masks = [
            torch.ones(part.rank, dtype=torch.bool, device=rows.device) if part.mask is None else part.mask
            for part in parts
        ]
        column = column * torch.cat([mask.to(rows.device, rows.dtype) for mask in masks])
    return column.repeat(real).unsqueeze(1)


@constant
def _scales(scales: tuple[tuple[float, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([scale for scale, rank in scales for _ in range(rank)], dtype=dtype, device=device)


class _FoldNode(torch.autograd.Function):
    """A fold with gradients: (fold, A's or B's) -> factors."""

    @staticmethod
    def forward(ctx: Any, fold: Fold, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.fold, ctx.dtype = fold, sources[0].dtype
        ctx.set_materialize_grads(False)
        return fold(sources)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.fold.backwards += 1
        return None, *ctx.fold.adjoint(grads, ctx.dtype)


class Attached(torch.autograd.Function):
    """Factors that are already folded, as a function of one layer's A or B."""

    @staticmethod
    def forward(ctx: Any, fold: Fold, source: Tensor, factor: Tensor) -> Tensor:
        ctx.fold, ctx.dtype = fold, source.dtype
        return factor.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None]:
        return None, ctx.fold.adjoint([grad], ctx.dtype)[0], None


def folded(fold: Fold, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`fold(sources)`, with gradients where they are wanted."""
    if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
        return _FoldNode.apply(fold, *sources)
    return fold(sources)


def check_present(source: Tensor, holder: nn.Module) -> None:
    """An A or B, which `holder` has, was not offloaded.

    Raises:
        RuntimeError: it was: accelerate leaves it on the meta device until `holder` is called, and nothing calls that.
    """
    if source.is_meta and hasattr(holder, "_hf_hook"):
        raise RuntimeError(
            "the adapter's weights are on the meta device, where they have no values. If accelerate offloads the model "
            "(device_map with cpu or disk, enable_sequential_cpu_offload), merge the adapter before, or keep the model on its "
            "devices."
        )
