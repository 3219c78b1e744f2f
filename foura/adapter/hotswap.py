"""Replacing a loaded adapter by another trained one, without rebuilding (or recompiling) the model."""

import os
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import nn

from foura.adapter.config import FouraConfig
from foura.adapter.freeze import foura_layers, replace_config
from foura.adapter.keep import FoldingLayer


@torch.no_grad()
def hotswap_adapter(model: nn.Module, path: str | os.PathLike[str], adapter_name: str = "default") -> None:
    """Copy the FouRA checkpoint in the folder `path` onto the adapter `adapter_name`, in place.

    Both must have the same layers, ranks, transform and gate; strengths may differ. PEFT's own `hotswap_adapter`
    supports only LoRA.

    Raises:
        ValueError: the checkpoint is not a FouRA adapter or does not fit; the model is then unchanged.
    """
    new = PeftConfig.from_pretrained(str(path))
    old = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(new, FouraConfig) or not isinstance(old, FouraConfig):
        raise ValueError(f"{path} and the adapter {adapter_name!r} must both be FouRA adapters to be swapped")
    for field in ("transform", "transform_seed", "gate", "gate_form", "gate_scope", "output_splits"):
        if getattr(new, field) != getattr(old, field):
            raise ValueError(
                f"cannot swap in {path}: its {field} is {getattr(new, field)!r}, "
                f"that of {adapter_name!r} is {getattr(old, field)!r}"
            )
    source = load_file(Path(path) / "adapter_model.safetensors")
    target = get_peft_model_state_dict(model, adapter_name=adapter_name)
    if misfits := sorted(
        key
        for key in source.keys() | target.keys()
        if key not in source or key not in target or source[key].shape != target[key].shape
    ):
        raise ValueError(f"cannot swap in {path}: {len(misfits)} tensors do not fit, such as {misfits[0]}")
    for key, tensor in target.items():  # these share their storage with the parameters
        tensor.copy_(source[key])
    for name, layer in foura_layers(model).items():
        if adapter_name in layer.r:
            # the out-projection of an attention has the attention's strength
            adapted = name.partition(".base_layer.")[0]
            key = get_pattern_key(list(new.alpha_pattern), adapted)
            layer.foura_alpha[adapter_name] = new.alpha_pattern.get(key, new.foura_alpha)
            layer.use_rslora[adapter_name] = new.use_rslora
            layer.set_scale(adapter_name, 1.0)
            if isinstance(layer, FoldingLayer):
                layer.forget_factors()
    strengths = {field: getattr(new, field) for field in ("foura_alpha", "alpha_pattern", "use_rslora")}
    replace_config(model, adapter_name, **strengths)
