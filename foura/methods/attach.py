"""Puts the adapter of a config on a backbone."""

import bisect
import copy
from typing import Any

import torch
from omegaconf import DictConfig
from peft import get_peft_model
from torch import nn

from foura.backbone import Backbone, describe_linear_layers, layer_size, target_layers
from foura.errors import UserError, reason
from foura.methods import method_of
from foura.methods.method import Layers, Method


def attach(backbone: Backbone, cfg: DictConfig, steps: int) -> nn.Module:
    """The backbone with the adapter of `cfg` (the whole config), only the adapter and a new head trainable.

    Args:
        steps: how many optimizer steps the run will make (AdaLoRA plans its pruning over them).

    Returns:
        a PeftModel, or the bare model for adapter=full and adapter=head.

    Raises:
        UserError: targets that match nothing, a rank above what a layer can hold, or an option that a method lacks.
    """
    model, method = backbone.model, method_of(cfg)
    if method.trained is not None:
        model.get_submodule(backbone.body).requires_grad_(method.trained == "body")
        for name in {backbone.head, *backbone.new}:
            model.get_submodule(name).requires_grad_(True)
        return model
    layers = target_layers(model, backbone.targets)
    if not layers:
        raise UserError(
            f"adapter={cfg.adapter.name} goes on linear layers and found none to adapt; the model has: "
            f"{describe_linear_layers(model)}. adapter=full and adapter=head need none."
        )
    if cfg.iso_parameters and method.ranked:
        cfg = _equal_parameters(cfg, method, model, layers, list(backbone.targets), steps)
    if method.ranked:
        _check_rank(method.first_rank(cfg.rank), layers)
    common: dict[str, Any] = {"target_modules": list(backbone.targets)}
    if backbone.new:
        common["modules_to_save"] = list(backbone.new)
    adapted, config = _wrapped(model, cfg, method, layers, steps, common)
    config.base_model_name_or_path = cfg.backbone.name  # after wrapping: PEFT overwrites it with what it finds
    return adapted


def _wrapped(
    model: nn.Module, cfg: DictConfig, method: Method, layers: Layers, steps: int, common: dict[str, Any]
) -> tuple[nn.Module, Any]:
    """(the model with the adapter, the adapter's PEFT config)."""
    config = method.config(cfg, layers, steps, common)
    try:
        adapted = get_peft_model(model, config)
    except method.refusals as error:
        raise UserError(
            f"adapter={cfg.adapter.name} cannot be put on this backbone's layers ({reason(error)}). They are: "
            f"{describe_linear_layers(model)}."
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
    # frozen weights without their values: only the adapter's own parameters take memory
    hollow = [
        (id(p), nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)) for p in model.parameters()
    ]

    def count(rank: int) -> int:
        copied = copy.deepcopy(model, dict(hollow))
        adapted, _ = _wrapped(copied, _with_rank(cfg, rank), method, layers, steps, {"target_modules": targets})
        return sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    with torch.random.fork_rng(devices=[]):
        fits = bisect.bisect_right(range(1, cfg.rank + 1), budget, key=count)
    if fits == 0:
        raise UserError(
            f"iso_parameters=true: adapter={cfg.adapter.name} has more parameters at rank 1 than LoRA at rank {cfg.rank}."
        )
    return _with_rank(cfg, fits)


def _with_rank(cfg: DictConfig, rank: int) -> DictConfig:
    changed = cfg.copy()
    changed.rank = rank
    return changed
