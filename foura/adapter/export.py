"""A FouRA adapter as an ordinary LoRA, exactly: for stacks that have never heard of FouRA.

Folding makes it a closed form with no SVD: lora_A = A F, lora_B = s F⁻¹ B. The rank is r for the real transforms and 2r
for the DFT, whose r complex coordinates are 2r real ones; rows masked by a frozen gate are left out.
"""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from foura.adapter.freeze import foura_layers
from foura.adapter.layer import FouraLayer


def to_lora(model: nn.Module, adapter_name: str = "default") -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter as (LoraConfig, state dict in PEFT's names); loads with plain PEFT, `foura` not imported.

    The LoRA's scaling is 1 in every layer: FouRA's is multiplied into lora_B. Other trained modules (modules_to_save,
    biases) come along unchanged.

    Raises:
        ValueError: no such FouRA adapter, or its gate is adaptive (freeze it first).
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    layers = {name: layer for name, layer in foura_layers(model).items() if adapter_name in layer.foura_A}
    if config is None or not layers:
        raise ValueError(f"this model has no FouRA adapter named {adapter_name!r}")
    state = {
        key: tensor
        for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
        if ".foura_" not in key
    }
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        lora_A, lora_B = lora_factors(layer, adapter_name)
        ranks[name] = lora_A.shape[0]
        state[f"base_model.model.{name}.lora_A.weight"] = lora_A.contiguous()
        state[f"base_model.model.{name}.lora_B.weight"] = lora_B.contiguous()
    rank = max(ranks.values())
    # longest names first: PEFT takes the first pattern that matches the end of a module's name
    pattern = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True) if ranks[name] != rank}
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=dict(pattern),
        alpha_pattern=dict(pattern),
        target_modules=list(ranks),
        modules_to_save=config.modules_to_save,
        bias="lora_only" if config.bias == "foura_only" else config.bias,
        fan_in_fan_out=config.fan_in_fan_out,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    return lora, state


@torch.no_grad()
def lora_factors(layer: FouraLayer, adapter_name: str) -> tuple[Tensor, Tensor]:
    """(lora_A (q, in), lora_B (out, q)) with lora_B @ lora_A = ΔW, in the dtype of the adapter; ranks that a frozen
    gate has closed are left out.

    Raises:
        ValueError: the adapter has an adaptive gate.
    """
    down, up = layer.fixed_factors(adapter_name)
    if adapter_name in layer.foura_gate_mask:
        mask = layer.foura_gate_mask[adapter_name].repeat(down.shape[0] // layer.r[adapter_name])
        # PEFT has no LoRA of rank 0: one row with a zero column says the same
        down, up = (down[mask], up[:, mask]) if mask.any() else (down[:1], torch.zeros_like(up[:, :1]))
    dtype = layer.foura_A[adapter_name].dtype
    return down.to(dtype), up.to(dtype)


def save_as_lora(model: nn.Module, path: str | os.PathLike[str], adapter_name: str = "default") -> None:
    """Write `to_lora` as a PEFT checkpoint (adapter_config.json and adapter_model.safetensors) into the folder `path`.

    Written beside and renamed, so that `path` never holds half an adapter.
    """
    lora, state = to_lora(model, adapter_name)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        lora.save_pretrained(str(scratch))
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        save_file(tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        target.mkdir(exist_ok=True)
        for file in scratch.iterdir():
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
