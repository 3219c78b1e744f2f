"""Combining trained adapters into one (paper sec. 3.5), by their LoRA form or by averaging A and B."""

import dataclasses
import math
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from foura.adapter.config import FouraConfig
from foura.adapter.layer import FouraLayer
from foura.adapter.transforms import TRANSFORMS

COMBINATIONS = ("cat", "svd", "linear")


def combined_config(
    configs: dict[str, FouraConfig | None], combination: str, svd_rank: int | None, model: nn.Module
) -> FouraConfig:
    """The config of the adapter that `combine_layer` fills; its scaling is 1 for "cat" and "svd".

    Raises:
        ValueError: an unknown adapter or combination, a gate that depends on the input, or adapters that this
            combination cannot take.
    """
    if combination not in COMBINATIONS:
        raise ValueError(f"combination_type={combination!r} is not known; choose one of {', '.join(COMBINATIONS)}")
    if not configs:
        raise ValueError("no adapters to combine were named")
    known: dict[str, FouraConfig] = {}
    for name, config in configs.items():
        if config is None:
            raise ValueError(f"Adapter {name} does not exist")
        if config.gate_depends_on_input:
            raise ValueError(f"adapter {name!r} has an adaptive gate; call foura.freeze_gates(model, batches) first")
        known[name] = config
    for wrapper in (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)):
        if sum(name in wrapper.modules_to_save for name in known) > 1:
            raise ValueError("Cannot add weighted adapters if they target the same module with modules_to_save.")
    first = next(iter(known.values()))
    ranks = [max(config.r, *config.rank_pattern.values(), 0) for config in known.values()]
    saved = {one for config in known.values() for one in config.modules_to_save or ()}
    fields: dict[str, Any] = {
        **_targets(known, model),
        "modules_to_save": sorted(saved) or None,
        "inference_mode": True,
    }
    if combination == "linear":
        same = {(config.r, config.transform, config.transform_seed, _frozen(config)) for config in known.values()}
        if len(same) > 1 or any(config.rank_pattern != first.rank_pattern for config in known.values()):
            raise ValueError(
                "combination_type='linear' needs adapters of the same r, transform and seed; use 'cat' or 'svd'."
            )
        return dataclasses.replace(
            first, **fields, gate="none", foura_alpha=first.r, alpha_pattern={}, use_rslora=False
        )
    real = [rank * TRANSFORMS[config.transform].parts for rank, config in zip(ranks, known.values(), strict=True)]
    rank = sum(real) if combination == "cat" else svd_rank or max(real)
    fields |= {"transform": "identity", "gate": "none", "output_splits": {}, "use_rslora": False}
    return dataclasses.replace(first, **fields, r=rank, foura_alpha=rank, rank_pattern={}, alpha_pattern={})


def _frozen(config: FouraConfig) -> str:
    return str(sorted(config.output_splits.items()))


def _targets(configs: dict[str, FouraConfig], model: nn.Module) -> dict[str, Any]:
    """The config fields by which exactly the layers that any of the adapters has are found, by patterns if that is possible."""
    chosen = [(one.layers_to_transform, one.layers_pattern, one.exclude_modules) for one in configs.values()]
    targets: list[Any] = [config.target_modules for config in configs.values()]
    if all(choice == chosen[0] for choice in chosen):
        if all(isinstance(target, str) for target in targets):
            return {"target_modules": "|".join(f"({target})" for target in targets)}
        if all(isinstance(target, set) for target in targets):
            return {"target_modules": set().union(*targets)}
    names = {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, FouraLayer) and not configs.keys().isdisjoint(layer.foura_A) and ".base_layer." not in name
    }
    return {"target_modules": names, "layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}


@torch.no_grad()
def combine_layer(layer: FouraLayer, weights: dict[str, float], adapter_name: str, combination: str) -> None:
    """Fill A and B of `adapter_name` in one layer from the adapters of `weights` that the layer has."""
    present = {name: weight for name, weight in weights.items() if name in layer.foura_A}
    A, B = layer.foura_A[adapter_name], layer.foura_B[adapter_name]
    A.zero_()
    B.zero_()
    if not present:  # the name of a layer ends like that of one that is adapted
        return
    if combination == "linear":
        rank = layer.r[adapter_name]
        for name, weight in present.items():
            # the new scaling is 1 (alpha = r), so each factor carries the root of the old one, as in PEFT's LoRA
            strength = weight * layer.scaling[name] / layer.scaling[adapter_name]
            A.add_(layer.foura_A[name], alpha=math.sqrt(abs(strength)))
            B_masked = layer.foura_B[name]
            if name in layer.foura_gate_mask:
                B_masked = B_masked * layer.foura_gate_mask[name].view(1, rank, *(1,) * (B_masked.dim() - 2))
            B.add_(B_masked, alpha=math.copysign(math.sqrt(abs(strength)), strength))
        return
    factors = [(down, up * weight) for name, weight in present.items() for down, up in [layer.fixed_factors(name)]]
    down = torch.cat([down for down, _ in factors])
    up = torch.cat([up for _, up in factors], dim=1)
    if combination == "svd":
        down, up = _truncated(down, up, layer.r[adapter_name])
    rank = down.shape[0]
    A[:rank] = down.to(A.dtype)
    B[:, :rank] = up.to(B.dtype) / layer.scaling[adapter_name]


@torch.no_grad()
def combine_saved(model: nn.Module, adapters: list[str], adapter_name: str) -> None:
    """Give `adapter_name` the heads that one of `adapters` has trained (modules_to_save): they are weights, not updates."""
    for wrapper in (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)):
        for name in adapters:
            if name in wrapper.modules_to_save:
                wrapper.modules_to_save[adapter_name].load_state_dict(wrapper.modules_to_save[name].state_dict())


def _truncated(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors of at most `rank` for up · down, by an SVD of the small core."""
    left, R_up = torch.linalg.qr(up)
    right, R_down = torch.linalg.qr(down.flatten(1).T)
    U, S, Vh = torch.linalg.svd(R_up @ R_down.T, full_matrices=False)
    rank = min(rank, len(S))
    root = S[:rank].sqrt()
    new_down = (root[:, None] * Vh[:rank]) @ right.T
    return new_down.unflatten(1, down.shape[1:]), left @ U[:, :rank] * root
