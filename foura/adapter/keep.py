"""Which layers fold together. `kept` says how long their factors stay valid.

The layers of a model share a `Folds`. The first of them that finds its factors stale has all stale layers of
its width folded with it, wherever it is called from: no wrapper around the model is needed.

**Folded alone, and not kept**: tensors in place of the layer's own parameters (FSDP's unsharded ones, whose gradients are
expected before the block's backward ends; `torch.func.functional_call`), inference tensors, parameters with gradient hooks,
and whatever a CUDA graph captures. A node for many layers announces the gradients of all of them, and DDP counts the
announcements. Inside a backward pass (reentrant checkpointing) values are therefore shared, but each layer has a node of its
own; and among several processes a layer joins a node only if its last call was part of a graph.
"""

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from foura.adapter import graph
from foura.adapter.config import FouraConfig
from foura.adapter.delta import masked
from foura.adapter.fold import DOWN, UP, Attached, Fold, Part, check_present, folded
from foura.adapter.kept import Kept, watch
from foura.adapter.layer import FouraLayer
from foura.adapter.merging import Factors
from foura.adapter.tracing import exported, selective


class Folds:
    """Shared by the layers of a model, which fold together. It does not keep them alive.

    A copy (also by pickling) starts empty; copied layers join it as they come.
    """

    def __init__(self) -> None:
        self._layers: list[weakref.ref[FoldingLayer]] = []
        self._groups: dict[tuple[Any, ...], list[weakref.ref[FoldingLayer]]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Folds, ()

    def join(self, layer: "FoldingLayer") -> None:
        """Make `layer` fold with the others."""
        self._layers = [reference for reference in self._layers if reference() not in (None, layer)]
        self._layers.append(weakref.ref(layer))
        self.regroup()

    def regroup(self) -> None:
        """Look at the layers' transforms again: an adapter has been added or replaced."""
        self._groups.clear()

    def layers(self) -> "list[FoldingLayer]":
        """The layers that live, in the order in which they joined."""
        layers = [reference() for reference in self._layers]
        return [layer for layer in layers if layer is not None]

    def fold(self, asking: "FoldingLayer", name: str, side: str, dtype: torch.dtype) -> Kept:
        """Fold A ("down") or B ("up") of the adapter `name` in `asking` and in every layer like it that is stale."""
        like = asking.own(name, side)
        gradients = like.requires_grad and torch.is_grad_enabled()
        together, sources = [], []
        for reference in self._group(asking, name, side):
            layer = reference()
            if layer is None:
                continue
            source = like if layer is asking else layer.folds_with(like, gradients, name, side, dtype)
            if source is not None:
                together.append(layer)
                sources.append(source)
        fold = Fold(side, asking.transform[name], dtype, tuple([layer.part(name, side) for layer in together]))
        with _outside_inference_mode(), _unseen_by_selection():
            factors = folded(fold, sources)
            kept = [
                layer.keep(name, side, sources[number], factors[number], fold, number)
                for number, layer in enumerate(together)
            ]
        return kept[together.index(asking)]

    def _group(self, asking: "FoldingLayer", name: str, side: str) -> "list[weakref.ref[FoldingLayer]]":
        """The layers whose adapter `name` has the transform and the width of that in `asking`."""
        key = (name, side, *asking.width_key(name, side))
        group = self._groups.get(key)
        if group is None:
            alike = [one for one in self.layers() if name in one.r and one.width_key(name, side) == key[2:]]
            group = self._groups[key] = [weakref.ref(layer) for layer in alike]
        return group


class FoldingLayer(FouraLayer):
    """A FouRA layer that folds A and B together with other layers, and keeps the factors."""

    other_param_names: tuple[str, ...] = (*FouraLayer.other_param_names, "_kept", "_own")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._kept: dict[str, dict[str, Kept]] = {}
        self._own: dict[str, dict[str, weakref.ref[Tensor]]] = {}
        self._factor_dtype: torch.dtype | None = None  # that of the last call
        self.traced: dict[str, Factors] = {}  # while a compiled model runs
        self._in_graph = False  # the last call was part of an autograd graph
        self.folds = Folds()
        super().__init__(*args, **kwargs)
        self.folds.join(self)
        self.register_load_state_dict_post_hook(_adopt_loaded)

    def factors(self, name: str, dtype: torch.dtype) -> Factors:
        """(down (q, N), up (M, q)) of the adapter in `dtype`, with strength and mask in up; see `fold`."""
        if self._factor_dtype is not dtype:  # setting an attribute of a module takes as long as all the rest
            self._factor_dtype = dtype
        gradients, nested = torch.is_grad_enabled(), torch._C._current_graph_task_id() != -1  # within a backward pass
        if self._in_graph is not gradients and not nested:
            self._in_graph = gradients
        A, B = self.source(name, DOWN), self.source(name, UP)
        captured = A is not None and A.is_cuda and torch.cuda.is_current_stream_capturing()
        sides = None if captured or (nested and gradients) else self._kept.get(name)
        if sides is not None:  # the usual case, without detours
            down, up = sides.get(DOWN), sides.get(UP)
            if (
                down is not None
                and up is not None
                and down.holds(A, dtype, gradients)
                and up.holds(B, dtype, gradients)
                and up.holds_part(self.scaling[name], self.mask(name))
                and not (A._backward_hooks or B._backward_hooks)
            ):
                return down.factor, up.factor
        return self._factor(name, DOWN, dtype, nested, captured), self._factor(name, UP, dtype, nested, captured)

    def _factor(self, name: str, side: str, dtype: torch.dtype, nested: bool, captured: bool) -> Tensor:
        source, holder = self.own(name, side), self.foura_A if side == DOWN else self.foura_B
        check_present(holder[name], holder)
        if source is None or captured:
            return folded(self._alone(name, side, dtype), [holder[name]])[0]
        if nested and source.requires_grad and torch.is_grad_enabled():
            with torch.no_grad():
                kept = self.kept(name, side, dtype, source) or self.folds.fold(self, name, side, dtype)
            return Attached.apply(self._alone(name, side, dtype), source, kept.factor)
        return (self.kept(name, side, dtype, source) or self.folds.fold(self, name, side, dtype)).factor

    def traced_factors(self, name: str, dtype: torch.dtype) -> Factors:
        """`factors` in a graph: those that `prefold` has made, or this layer's alone."""
        if exported():
            down, up = self.fold(name)
            return down.to(dtype), (self.mask_up(name, up) * self.scaling[name]).to(dtype)
        if name in self.traced and self.traced[name][0].dtype == dtype:
            return self.traced[name]
        transform, mask = self.transform_name[name], self.mask(name)
        (down,) = graph.fold([self.foura_A[name]], DOWN, transform, [1.0], dtype)
        (rows,) = graph.fold([self.foura_B[name]], UP, transform, [self.scaling[name]], dtype)
        return down, rows.T if mask is None else masked(rows.T, mask, self.r[name])

    def traced_key(self, name: str, side: str) -> tuple[Any, ...]:
        """Equal for layers that fold together within torch.compile; side and dtype of the factors first."""
        source = self.foura_A[name] if side == DOWN else self.foura_B[name]
        device = source.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else source.dtype
        transform, *widths = self.width_key(name, side)
        return side, dtype, transform.__name__, *widths, source.dtype, source.device

    def _alone(self, name: str, side: str, dtype: torch.dtype) -> Fold:
        return Fold(side, self.transform[name], dtype, (self.part(name, side),))

    # -- what Folds asks

    def source(self, name: str, side: str) -> Any:
        """A ("down") or B, if it is held as a parameter."""
        module: Any = self._modules["foura_A" if side == DOWN else "foura_B"]
        return module._parameters.get(name)

    def own(self, name: str, side: str) -> Any:
        """A ("down") or B if it is the layer's own parameter, which may be folded with others and kept; else None."""
        source: Any = self.source(name, side)
        own: Any = self._own.get(name)
        if (
            source is None
            or own is None
            or own[side]() is not source
            or source._backward_hooks
            or source.is_inference()
        ):
            return None
        return source

    def part(self, name: str, side: str) -> Part:
        """The layer's share of a fold."""
        if side == DOWN:
            return Part(self.r[name])
        return Part(self.r[name], self.scaling[name], self.mask(name))

    def width_key(self, name: str, side: str) -> tuple[Any, ...]:
        """Equal for layers that can fold together: transform and width."""
        transform = self.transform[name]
        widths = (transform.in_features,) if side == DOWN else (transform.out_features, transform.splits)
        return type(transform), transform.seed, *widths

    def folds_with(self, like: Tensor, gradients: bool, name: str, side: str, dtype: torch.dtype) -> Any:
        """The layer's A or B if it is stale and can be folded with `like`, of a layer with this `width_key`; else None."""
        source = self.own(name, side)
        if (
            source is None
            or self._factor_dtype not in (None, dtype)
            or self.merged_adapters
            or source.dtype != like.dtype
            or source.device != like.device
            or (source.requires_grad and torch.is_grad_enabled()) != gradients
            or (gradients and not self._in_graph and _is_distributed())
            or self.kept(name, side, dtype, source) is not None
        ):
            return None
        return source

    # -- keeping

    def kept(self, name: str, side: str, dtype: torch.dtype, source: Tensor) -> Kept | None:
        """The kept factor of `source`, if it is valid."""
        sides = self._kept.get(name)
        kept = None if sides is None else sides.get(side)
        if kept is None or not kept.holds(source, dtype, torch.is_grad_enabled()):
            return None
        return kept if side == DOWN or kept.holds_part(self.scaling[name], self.mask(name)) else None

    def keep(self, name: str, side: str, source: Tensor, factor: Tensor, fold: Fold, number: int) -> Kept:
        """Keep layer `number` of a fold."""
        sides = self._kept.setdefault(name, {})
        kept = sides[side] = Kept(source, factor, fold, number, sides.get(side))
        watch(source)
        return kept

    def adopt(self) -> None:
        """Take the parameters that the layer has now as its own."""
        self._kept.clear()
        self.folds.regroup()
        for name in self.foura_A:
            A, B = self.foura_A[name], self.foura_B[name]
            if type(A) is type(B) is nn.Parameter:
                self._own[name] = {DOWN: weakref.ref(A), UP: weakref.ref(B)}
            else:
                self._own.pop(name, None)

    def forget_factors(self) -> None:
        """Drop the folded factors, so that the next call folds; needed after writing to weights through `.data` alone."""
        self._kept.clear()

    # -- what changes weights or puts others in their place

    def update_layer(self, adapter_name: str, config: FouraConfig, r: int, alpha: float, splits: int) -> None:
        super().update_layer(adapter_name, config, r, alpha, splits)
        self.adopt()

    def train(self, mode: bool = True) -> "FoldingLayer":
        if mode and self.training:  # some trainers say so before every micro-batch
            for sides in self._kept.values():
                for kept in sides.values():
                    kept.doubt()
        else:
            self.forget_factors()
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> "FoldingLayer":
        super()._apply(*args, **kwargs)
        self.adopt()
        return self

    def _move_adapter_to_device_of_base_layer(self, *args: Any, **kwargs: Any) -> None:
        super()._move_adapter_to_device_of_base_layer(*args, **kwargs)
        self.adopt()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_own": {}, "traced": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.folds.join(self)
        self.adopt()


@contextmanager
def _outside_inference_mode() -> Iterator[None]:
    """A context whose tensors may be used in training; there are no gradients in inference mode, nor here then."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            yield
    else:
        yield


def _unseen_by_selection() -> AbstractContextManager[Any]:
    """A context without selective checkpointing: its recomputation finds the factors kept, and would miss their fold."""
    return _disable_current_modes() if selective() else nullcontext()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _adopt_loaded(layer: FoldingLayer, _keys: Any) -> None:
    layer.adopt()
