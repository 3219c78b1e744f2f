"""Puts the adapter of a config on a backbone."""

import bisect
import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from peft import get_peft_model
from torch import Tensor, nn

from foura.backbone import NUMBERED, Backbone, describe_layers, fused_outputs, layer_size, target_layers
from foura.errors import UserError, reason
from foura.methods import method_of
from foura.methods.method import Layers, Method


def attach(backbone: Backbone, cfg: DictConfig, steps: int) -> nn.Module:
    """The backbone with the adapter of `cfg` (the whole config), only the adapter and a new head trainable.

    Args:
        backbone: its model is changed in place.
        cfg: the whole config.
        steps: number of optimizer steps of the run (AdaLoRA plans its pruning over them).

    Returns:
        a PeftModel, or the bare model for adapter=full and adapter=head.

    Raises:
        UserError: targets that match nothing, a rank above what a layer can hold, or an option that a method lacks.
    """
    model, method = backbone.model, method_of(cfg)
    if cfg.iso_parameters and not method.sized_by_rank(cfg.adapter):
        raise UserError(
            f"iso_parameters=true searches for a rank, and the number of parameters of adapter={cfg.adapter.name} does not "
            "grow with rank; leave it out."
        )
    if method.trained is not None:
        return unfreeze(backbone, method.trained)
    layers = target_layers(model, backbone.targets)
    if not layers:
        raise UserError(
            f"adapter={cfg.adapter.name} goes on linear layers and convolutions, and found none to adapt; the model has: "
            f"{describe_layers(model)}. adapter=full and adapter=head need none."
        )
    cfg = _with_splits(cfg, fused_outputs(model, layers))
    if cfg.iso_parameters:
        cfg = _equal_parameters(cfg, method, model, layers, list(backbone.targets), steps)
    if method.ranked:
        _check_rank(method.first_rank(cfg.rank), layers)
    common: dict[str, Any] = {"target_modules": list(backbone.targets)}
    if backbone.new:
        common["modules_to_save"] = list(backbone.new)
    adapted, config = _wrapped(model, cfg, method, layers, steps, common)
    config.base_model_name_or_path = cfg.backbone.name  # after wrapping: PEFT overwrites it with what it finds
    return adapted


def _with_splits(cfg: DictConfig, fused: Mapping[str, int]) -> DictConfig:
    """The config with output_splits for the fused layers, where the user names none for them."""
    named = cfg.backbone.output_splits
    found = {}
    for layer, count in fused.items():
        if not any(re.fullmatch(rf"(.*\.)?({pattern})", layer) for pattern in named):
            found[_in_every_block(layer)] = count
    if not found:
        return cfg
    changed = copy.deepcopy(cfg)
    changed.backbone.output_splits = {**named, **found}
    return changed


def _in_every_block(layer: str) -> str:
    """The name of a layer within its block: "attn.c_attn" of "transformer.h.0.attn.c_attn"."""
    return re.split(NUMBERED, layer)[-1]


def unfreeze(backbone: Backbone, trained: str) -> nn.Module:
    """The bare model, with the modules that adapter=full ("body") or adapter=head ("head") trains made trainable."""
    for name in trained_modules(backbone, trained):
        backbone.model.get_submodule(name).requires_grad_(True)
    return backbone.model


def trained_modules(backbone: Backbone, trained: str) -> list[str]:
    """Names of the modules that adapter=full ("body") or adapter=head ("head") trains."""
    return [*([backbone.body] if trained == "body" else []), backbone.head, *backbone.new]


def _wrapped(
    model: nn.Module, cfg: DictConfig, method: Method, layers: Layers, steps: int, common: dict[str, Any]
) -> tuple[nn.Module, Any]:
    """(the model with the adapter, the adapter's PEFT config)."""
    config, described = method.config(cfg, layers, steps, common), describe_layers(model)
    try:
        adapted = get_peft_model(model, config)
    except method.refusals as error:
        raise UserError(
            f"adapter={cfg.adapter.name} cannot be put on this backbone's layers ({reason(error)}). They are: {described}."
        ) from error
    method.prepare(adapted)
    return adapted, config


def _check_rank(rank: int, layers: Layers) -> None:
    name, size = min(((name, layer_size(layer)) for name, layer in layers.items()), key=lambda item: min(item[1]))
    if rank > min(size):
        raise UserError(
            f"rank {rank} is more than layer {name} ({size[0]} -> {size[1]}) can hold: at most {min(size)}."
        )


def _equal_parameters(
    cfg: DictConfig, method: Method, model: nn.Module, layers: Layers, targets: list[str], steps: int
) -> DictConfig:
    """The config with the largest rank that has no more parameters than LoRA at `cfg.rank`, found by counting them."""
    budget = cfg.rank * sum(sum(layer_size(layer)) for layer in layers.values())
    hollow = {id(p): nn.Parameter(_zeros(p), requires_grad=False) for p in model.parameters()}

    def count(rank: int) -> int:
        copied = copy.deepcopy(model, dict(hollow))
        adapted, _ = _wrapped(copied, _with_rank(cfg, rank), method, layers, steps, {"target_modules": targets})
        return sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    def count_above(rank: int) -> float:
        try:
            return count(rank)
        except UserError:  # more than a layer can hold
            return math.inf

    with torch.random.fork_rng(devices=[]):
        spent = count(cfg.rank)
        if spent < budget:
            most = max(cfg.rank, min(min(layer_size(layer)) for layer in layers.values()))
            ranks = range(cfg.rank + 1, most + 1)
            fits = cfg.rank + bisect.bisect_right(ranks, budget, key=count_above)
        else:
            fits = cfg.rank if spent == budget else bisect.bisect_right(range(1, cfg.rank), budget, key=count)
    if fits == 0:
        raise UserError(
            f"iso_parameters=true: adapter={cfg.adapter.name} has more parameters at rank 1 than LoRA at rank {cfg.rank}."
        )
    return _with_rank(cfg, fits)


def _zeros(tensor: Tensor) -> Tensor:
    """Zeros of the same shape and dtype that take no memory until they are written (torch.zeros writes them)."""
    bytes_ = torch.from_numpy(np.zeros(tensor.numel() * tensor.element_size(), dtype=np.uint8))
    return bytes_.view(tensor.dtype).view(tensor.shape)


def _with_rank(cfg: DictConfig, rank: int) -> DictConfig:
    changed = cfg.copy()
    changed.rank = rank
    return changed
