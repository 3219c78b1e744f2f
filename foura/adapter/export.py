"""Exact export of a FouRA adapter to an ordinary LoRA, for software that does not know FouRA.

Folding gives it in closed form, without an SVD: lora_A = A F, lora_B = s F⁻¹ B. The rank is r for real transforms and 2r
for the DFT, whose r complex coordinates are 2r real ones; ranks closed by a frozen gate are left out.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from foura.adapter.attention import MultiheadAttention
from foura.adapter.config import FouraConfig
from foura.adapter.embedding import Embedding
from foura.adapter.freeze import foura_layers
from foura.adapter.layer import FouraLayer

NAMINGS = ("peft", "diffusers", "kohya")
KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def to_lora(model: nn.Module, adapter_name: str = "default") -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter as (LoraConfig, state dict in PEFT's names); loads with plain PEFT, `foura` not imported.

    The LoRA's scaling is 1 in every layer: FouRA's is multiplied into lora_B. Other trained modules (modules_to_save,
    biases) come along unchanged.

    Raises:
        ValueError: no such FouRA adapter, its gate depends on the input (freeze it first), or it is on
            nn.MultiheadAttention.
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    layers = {name: layer for name, layer in foura_layers(model).items() if adapter_name in layer.foura_A}
    if config is None or not layers:
        raise ValueError(f"this model has no FouRA adapter named {adapter_name!r}")
    state = {
        key if key.startswith("base_model.model.") else f"base_model.model.{key}": tensor
        for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
        if ".foura_" not in key
    }
    if any(isinstance(layer, MultiheadAttention) for layer in layers.values()):
        raise ValueError(
            "PEFT's LoRA adds the update of an nn.MultiheadAttention's out-projection twice (as of peft 0.21), so no "
            "LoRA checkpoint would do what this adapter does: use merge_and_unload instead."
        )
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        lora_A, lora_B = lora_factors(layer, adapter_name)
        ranks[name] = lora_A.shape[0]
        if isinstance(layer, Embedding):
            state[f"base_model.model.{name}.lora_embedding_A"] = lora_A
            state[f"base_model.model.{name}.lora_embedding_B"] = lora_B
        else:
            kernel_dims = lora_A.dim() - 2
            state[f"base_model.model.{name}.lora_A.weight"] = lora_A
            state[f"base_model.model.{name}.lora_B.weight"] = lora_B[(..., *(None,) * kernel_dims)]
    return _lora_config(config, ranks, any(layer.fan_in_fan_out for layer in layers.values())), state


def _lora_config(config: FouraConfig, ranks: dict[str, int], fan_in_fan_out: bool) -> LoraConfig:
    """The config of a LoRA of scaling 1 with these ranks per module."""
    rank = max(ranks.values())
    # longest names first: PEFT takes the first pattern that matches the end of a module's name
    pattern = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True) if ranks[name] != rank}
    bias: Any = "lora_only" if config.bias == "foura_only" else config.bias
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=dict(pattern),
        alpha_pattern=dict(pattern),
        target_modules=list(ranks),
        modules_to_save=config.modules_to_save,
        bias=bias,
        fan_in_fan_out=fan_in_fan_out,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )


@torch.no_grad()
def lora_factors(layer: FouraLayer, adapter_name: str) -> tuple[Tensor, Tensor]:
    """(lora_A (q, in), lora_B (out, q)) with lora_B @ lora_A = ΔW, in the adapter's dtype; closed ranks are left out.

    Raises:
        ValueError: the adapter's gate depends on the input.
    """
    down, up = layer.fixed_factors(adapter_name)
    if adapter_name in layer.foura_gate_mask:
        mask = layer.foura_gate_mask[adapter_name].repeat(down.shape[0] // layer.r[adapter_name])
        # PEFT has no LoRA of rank 0; one row with a zero column is the same function
        down, up = (down[mask], up[:, mask]) if mask.any() else (down[:1], torch.zeros_like(up[:, :1]))
    dtype = layer.foura_A[adapter_name].dtype
    return down.to(dtype), up.to(dtype)


def save_as_lora(
    model: nn.Module,
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    naming: str = "peft",
    component: str = "unet",
) -> None:
    """Write `to_lora` into the folder `path`, in the naming that a given program reads.

    Files are written to a temporary folder and renamed, so that `path` never holds an incomplete adapter.

    Args:
        naming: "peft": adapter_config.json and adapter_model.safetensors, for PeftModel and servers of PEFT LoRAs.
            "diffusers": pytorch_lora_weights.safetensors, for `pipe.load_lora_weights(path)`.
            "kohya": the same file name with kohya's keys and an alpha per layer, for ComfyUI, A1111 and sd-scripts.
        component: for the latter two, the part of the pipeline that `model` is: unet, text_encoder or text_encoder_2.

    Raises:
        ValueError: an unknown naming or component, or an adapter that `to_lora` refuses.
    """
    if naming not in NAMINGS:
        raise ValueError(f"naming={naming!r} is not known; choose one of {', '.join(NAMINGS)}")
    if naming != "peft" and component not in KOHYA_PREFIXES:
        raise ValueError(f"component={component!r} is not known; choose one of {', '.join(KOHYA_PREFIXES)}")
    lora, state = to_lora(model, adapter_name)
    file, metadata = "pytorch_lora_weights.safetensors", {"format": "pt"}
    if naming == "peft":
        file = "adapter_model.safetensors"
    elif naming == "diffusers":
        state = {f"{component}.{key.removeprefix('base_model.model.')}": value for key, value in state.items()}
        metadata["lora_adapter_metadata"] = json.dumps(_diffusers_metadata(lora, component))
    else:
        state = _kohya(state, KOHYA_PREFIXES[component], float(lora.r))
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with _complete_folder(Path(path)) as scratch:
        if naming == "peft":
            lora.save_pretrained(str(scratch))
        save_file(tensors, scratch / file, metadata=metadata)


@contextmanager
def _complete_folder(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target`, whose files are moved into it if the context ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        target.mkdir(exist_ok=True)
        for written in scratch.iterdir():
            os.replace(written, target / written.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _diffusers_metadata(lora: LoraConfig, component: str) -> dict[str, object]:
    """The config as diffusers stores it in the file; without it, it guesses ranks and strengths from the shapes."""
    fields = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
    values = {field: getattr(lora, field) for field in fields}
    return {
        f"{component}.{field}": sorted(value) if isinstance(value, set) else value for field, value in values.items()
    }


def _kohya(state: dict[str, Tensor], prefix: str, alpha: float) -> dict[str, Tensor]:
    """PEFT's keys to kohya's: lora_unet_down_blocks_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha.

    A loader scales a layer by alpha / rank. `alpha` is the same in every layer, because diffusers loses alphas that
    differ; each layer's rank / alpha is multiplied into its lora_up.

    Raises:
        ValueError: a layer that is neither linear nor a convolution, or another trained module.
    """
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name, _, kind = key.removeprefix("base_model.model.").rpartition(".lora_")
        if kind not in ("A.weight", "B.weight"):
            raise ValueError(f"kohya's format holds only linear and convolution layers, not {key}")
        module = f"{prefix}_{name.replace('.', '_')}"
        if kind == "A.weight":
            result[f"{module}.lora_down.weight"] = tensor
            result[f"{module}.alpha"] = torch.tensor(alpha)
        else:
            result[f"{module}.lora_up.weight"] = tensor * (tensor.shape[1] / alpha)
    return result
