"""Folding in compiled graphs: an operator that the graph does not look into, one call per group of layers.

Nothing is kept: a graph folds in each call, and its inputs are A and B themselves. `Prefold` is a hook of the model that folds
all layers before its forward; a layer that is compiled without its model folds alone.
"""

from typing import Any

import torch
from torch import Tensor

from foura.adapter.fold import DOWN, Fold, Part
from foura.adapter.transforms import Transform

_transforms: dict[str, Transform] = {}  # an operator takes names, not objects


def named(transform: Transform) -> str:
    """The name by which the operator knows a transform."""
    name = f"{type(transform).__module__}.{transform!r}"
    _transforms[name] = transform
    return name


def fold(sources: list[Tensor], side: str, transform: str, scalings: list[float], dtype: torch.dtype) -> list[Tensor]:
    """Factors of all A's (q, N) or B's (q, M) in `dtype`, contiguous, with strength."""
    return torch.ops.foura.fold(sources, side, transform, scalings, dtype)


def _fold_of(side: str, transform: str, ranks: list[int], scalings: list[float], dtype: torch.dtype) -> Fold:
    parts = tuple(Part(rank, scale) for rank, scale in zip(ranks, scalings, strict=True))
    return Fold(side, _transforms[transform], dtype, parts)


def _ranks(sources: list[Tensor], side: str) -> list[int]:
    return [source.shape[0 if side == DOWN else 1] for source in sources]


@torch.library.custom_op("foura::fold", mutates_args=())
def _fold(sources: list[Tensor], side: str, transform: str, scalings: list[float], dtype: torch.dtype) -> list[Tensor]:
    factors = _fold_of(side, transform, _ranks(sources, side), scalings, dtype)(sources)
    # an operator's outputs must not share memory
    return [(factor if side == DOWN else factor.T).clone(memory_format=torch.contiguous_format) for factor in factors]


@_fold.register_fake
def _(sources, side, transform, scalings, dtype):
    known = _transforms[transform]
    width = known.in_features if side == DOWN else known.out_features
    return [sources[0].new_empty(known.parts * rank, width, dtype=dtype) for rank in _ranks(sources, side)]


@torch.library.custom_op("foura::fold_adjoint", mutates_args=())
def _adjoint(grads: list[Tensor], side: str, transform: str, scalings: list[float], dtype: torch.dtype) -> list[Tensor]:
    ranks = [grad.shape[0] // _transforms[transform].parts for grad in grads]
    found = _fold_of(side, transform, ranks, scalings, dtype).adjoint(
        grads if side == DOWN else [grad.T for grad in grads], dtype
    )
    return [grad.clone(memory_format=torch.contiguous_format) for grad in found if grad is not None]


@_adjoint.register_fake
def _(grads, side, transform, scalings, dtype):
    known = _transforms[transform]
    shape = known.shape_A if side == DOWN else known.shape_B
    return [grad.new_empty(shape(grad.shape[0] // known.parts), dtype=dtype) for grad in grads]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    sources, ctx.side, ctx.transform, ctx.scalings, ctx.factor_dtype = inputs
    ctx.dtype = sources[0].dtype
    ctx.like = [(factor.shape, factor.device) for factor in output]


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    filled = [
        torch.zeros(shape, dtype=ctx.factor_dtype, device=device) if grad is None else grad
        for grad, (shape, device) in zip(grads, ctx.like, strict=True)
    ]
    return _adjoint(filled, ctx.side, ctx.transform, ctx.scalings, ctx.dtype), None, None, None, None


_fold.register_autograd(_backward, setup_context=_setup)
