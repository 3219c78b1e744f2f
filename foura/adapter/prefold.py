"""Hooks of a model for torch.compile: all layers are folded before its forward, with one operator per width and side."""

from typing import Any

import torch
from torch import Tensor, nn

from foura.adapter import graph
from foura.adapter.delta import masked
from foura.adapter.fold import DOWN, UP
from foura.adapter.keep import FoldingLayer, Folds
from foura.adapter.tracing import exported


def prefold(folds: Folds, _model: nn.Module, args: Any) -> None:
    """Hook before a model's forward: in a compiled graph, fold all layers with one operator per width and side."""
    if not torch.compiler.is_compiling() or exported():
        return
    for layer in folds.layers():
        for (
            name
        ) in layer.names():  # of a model without PEFT's wrapper: this call has no mask, whatever the last one had
            gate = layer.gate(name)
            if gate is not None and gate.padding_mask is None and gate.kept_mask is not None:
                gate.kept_mask = None
    groups: dict[tuple[Any, ...], list[tuple[FoldingLayer, str]]] = {}
    for layer in folds.layers():
        if not (layer.merged or layer.disable_adapters):
            for name in layer.names():
                for side in (DOWN, UP):
                    groups.setdefault(layer.traced_key(name, side), []).append((layer, name))
    factors: dict[tuple[int, str, str], Tensor] = {}
    for (side, dtype, *_), together in groups.items():
        transform = together[0][0].transform_name[together[0][1]]
        sources = [(layer.foura_A if side == DOWN else layer.foura_B)[name] for layer, name in together]
        scalings = [1.0 if side == DOWN else layer.scaling[name] for layer, name in together]
        for (layer, name), factor in zip(together, graph.fold(sources, side, transform, scalings, dtype), strict=True):
            factors[id(layer), name, side] = factor
    for layer in folds.layers():
        for name in layer.names():
            if (id(layer), name, DOWN) in factors:
                down, up, mask = factors[id(layer), name, DOWN], factors[id(layer), name, UP].T, layer.mask(name)
                layer.traced[name] = down, up if mask is None else masked(up, mask, layer.r[name])


def forget_prefolded(folds: Folds, _model: nn.Module, _args: Any, _output: Any) -> None:
    """Hook after a model's forward."""
    if torch.compiler.is_compiling():
        for layer in folds.layers():
            layer.traced.clear()
