"""Folding in compiled graphs: an operator that the graph does not look into, one call per group of layers.

Nothing is kept: a graph folds in each call, and its inputs are A and B themselves. `Prefold` is a hook of the model that folds
all layers before its forward; a layer that is compiled without its model folds alone.
"""

import math
from typing import Any

import torch
from torch import Tensor

from foura.adapter.fold import DOWN, Fold, Part
from foura.adapter.operator import operator
from foura.adapter.transforms import Transform

_transforms: dict[str, Transform] = {}  # an operator takes names, not objects


def named(transform: Transform) -> str:
    """The name by which the operator knows a transform."""
    name = f"{type(transform).__module__}.{transform!r}"
    _transforms[name] = transform
    return name


def fold(sources: list[Tensor], side: str, transform: str, scalings: list[float], dtype: torch.dtype) -> list[Tensor]:
    """Factors of all A's (q, N) or B's (q, M) in `dtype`, with strength: views of one tensor."""
    rows = fold_rows(sources, side, transform, scalings, dtype)
    return list(rows.split([_transforms[transform].parts * rank for rank in _ranks(sources, side)]))


def _fold_of(side: str, transform: str, ranks: list[int], scalings: list[float], dtype: torch.dtype) -> Fold:
    parts = tuple([Part(rank, scale) for rank, scale in zip(ranks, scalings, strict=True)])
    return Fold(side, _transforms[transform], dtype, parts)


def _ranks(sources: list[Tensor], side: str) -> list[int]:
    return [source.shape[0 if side == DOWN else 1] for source in sources]


def _shape(side: str, transform: str, rank: int) -> tuple[int, ...]:
    known = _transforms[transform]
    return known.shape_A(rank) if side == DOWN else known.shape_B(rank)


@operator
def fold_rows(sources: list[Tensor], side: str, transform: str, scalings: list[float], dtype: torch.dtype) -> Tensor:
    rows = _fold_of(side, transform, _ranks(sources, side), scalings, dtype).rows(sources)
    # an operator's output must not share memory with its inputs, as that of the identity can
    return rows.clone() if rows.data_ptr() == sources[0].data_ptr() else rows


@torch.library.register_fake("foura::fold_rows")
def _(sources, side, transform, scalings, dtype):
    known = _transforms[transform]
    width = known.in_features if side == DOWN else known.out_features
    return sources[0].new_empty(known.parts * sum(_ranks(sources, side)), width, dtype=dtype)


@operator
def fold_adjoint(
    grad: Tensor, ranks: list[int], side: str, transform: str, scalings: list[float], dtype: torch.dtype
) -> Tensor:
    """The gradients of all A's or B's, flat, one after the other."""
    fold = _fold_of(side, transform, ranks, scalings, dtype)
    return torch.cat([one.reshape(-1) for one in fold.adjoint_of_rows(grad, fold.parts, dtype)])


@torch.library.register_fake("foura::fold_adjoint")
def _(grad, ranks, side, transform, scalings, dtype):
    return grad.new_empty(sum(math.prod(_shape(side, transform, rank)) for rank in ranks), dtype=dtype)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    sources, ctx.side, ctx.transform, ctx.scalings, _ = inputs
    ctx.dtype, ctx.ranks = sources[0].dtype, _ranks(sources, ctx.side)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    flat = fold_adjoint(grad, ctx.ranks, ctx.side, ctx.transform, ctx.scalings, ctx.dtype)
    shapes = [_shape(ctx.side, ctx.transform, rank) for rank in ctx.ranks]
    blocks = flat.split([math.prod(shape) for shape in shapes])
    return [block.view(shape) for block, shape in zip(blocks, shapes, strict=True)], None, None, None, None


torch.library.register_autograd("foura::fold_rows", _backward, setup_context=_setup)
