"""Exact export of a FouRA adapter to an ordinary LoRA, for software that does not know FouRA.

Folding gives it in closed form, without an SVD: lora_A = A F, lora_B = s F⁻¹ B. The rank is r for real transforms and 2r
for the DFT, whose r complex coordinates are 2r real ones; ranks closed by a frozen gate are left out. Layers of fewer
ranks than the largest are filled up with zeros: most programs read one rank and one alpha for the whole adapter.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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
from foura.adapter.naming import (
    check_component,
    diffusers_header,
    diffusers_metadata,
    diffusers_names,
    has_second_encoder,
    kohya_names,
)
from foura.adapter.plain_lora import check_keeping, lora_layers, plain_factors

NAMINGS = ("peft", "diffusers", "kohya")
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM's --max-lora-rank can have


def to_lora(
    model: nn.Module, adapter_name: str = "default", per_layer_ranks: bool = False
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter as (LoraConfig, state dict in PEFT's names); loads with plain PEFT, `foura` not imported.

    It may be one of FouRA, or a LoRA of PEFT's own, which comes along for the names that other programs read. The LoRA's
    scaling is 1 in every layer: the adapter's own is multiplied into lora_B. Other trained modules (modules_to_save,
    biases) come along unchanged.

    Args:
        per_layer_ranks: keep layers of fewer ranks as small as they are, with PEFT's rank_pattern and alpha_pattern.
            llama.cpp reads one alpha and divides it by each layer's own rank, so it would scale such layers wrongly, and
            SGLang refuses them. False: every layer is filled up with zeros to the largest rank.

    Raises:
        ValueError: no such adapter, its gate depends on the input (freeze it first), it is on nn.MultiheadAttention, or a
            LoRA that is more than its two factors (DoRA, PiSSA, …).
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    layers: Any  # {module name: layer}
    if isinstance(config, LoraConfig):
        check_keeping(config)
        layers = lora_layers(model, adapter_name)
        factors = {name: plain_factors(layer, adapter_name) for name, layer in layers.items()}
    else:
        layers = {name: layer for name, layer in foura_layers(model).items() if adapter_name in layer.foura_A}
        factors = {}
    if config is None or not layers:
        raise ValueError(f"this model has no FouRA adapter, and no LoRA, named {adapter_name!r}")
    state = {
        key if key.startswith("base_model.model.") else f"base_model.model.{key}": tensor
        for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
        if ".foura_" not in key and ".lora_" not in key
    }
    if any(isinstance(layer, MultiheadAttention) for layer in layers.values()):
        raise ValueError(
            "PEFT's LoRA adds the update of an nn.MultiheadAttention's out-projection twice (as of peft 0.21), so no "
            "LoRA checkpoint would do what this adapter does: use merge_and_unload instead."
        )
    factors = factors or {name: lora_factors(layer, adapter_name) for name, layer in layers.items()}
    rank = max(len(down) for down, _ in factors.values())
    ranks = {name: len(down) if per_layer_ranks else rank for name, (down, _) in factors.items()}
    for name, (down, up) in factors.items():
        lora_A, lora_B = _filled_up(down, up, ranks[name])
        if isinstance(layers[name], Embedding):
            state[f"base_model.model.{name}.lora_embedding_A"] = lora_A
            state[f"base_model.model.{name}.lora_embedding_B"] = lora_B
        else:
            kernel_dims = lora_A.dim() - 2
            state[f"base_model.model.{name}.lora_A.weight"] = lora_A
            state[f"base_model.model.{name}.lora_B.weight"] = lora_B[(..., *(None,) * kernel_dims)]
    return _lora_config(config, ranks, any(getattr(layer, "fan_in_fan_out", False) for layer in layers.values())), state


def _filled_up(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(down (rank, …), up (out, rank)) with rows and columns of zeros where there were fewer ranks."""
    missing = rank - len(down)
    rows, columns = down.new_zeros(missing, *down.shape[1:]), up.new_zeros(len(up), missing)
    return torch.cat([down, rows]), torch.cat([up, columns], dim=1)


def _lora_config(config: FouraConfig | LoraConfig, ranks: dict[str, int], fan_in_fan_out: bool) -> LoraConfig:
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
    model: nn.Module | Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    naming: str = "peft",
    component: str | None = None,
    per_layer_ranks: bool = False,
) -> str:
    """Write `to_lora` into the folder `path`, in the naming that a given program reads.

    Files are written to a temporary folder and renamed, so that `path` never holds an incomplete adapter.

    Args:
        model: the adapted model, or for one file of several parts of a pipeline a mapping {component: adapted model}.
        naming: "peft": adapter_config.json and adapter_model.safetensors, for PeftModel and servers of PEFT LoRAs.
            "diffusers": pytorch_lora_weights.safetensors, for `pipe.load_lora_weights(path)`.
            "kohya": the same file name with kohya's keys and an alpha per layer, for ComfyUI, A1111 and sd-scripts.
        component: for the latter two, the part of the pipeline that `model` is: unet, transformer, text_encoder or
            text_encoder_2. Left out, the class of a model of diffusers says it; a text encoder has to be named.
        per_layer_ranks: as in `to_lora`.

    Returns:
        a sentence: the rank, and who reads the file.

    Raises:
        ValueError: an unknown naming or component, an adapter that `to_lora` refuses, or something trained that the
            naming cannot hold.
    """
    if naming not in NAMINGS:
        raise ValueError(f"naming={naming!r} is not known; choose one of {', '.join(NAMINGS)}")
    if naming == "peft":
        if isinstance(model, Mapping):
            raise ValueError("naming='peft' is for one model; save the parts of a pipeline one by one.")
        lora, state = to_lora(model, adapter_name, per_layer_ranks)
        configs, file, header = [lora], "adapter_model.safetensors", {"format": "pt"}
    else:
        parts = model if isinstance(model, Mapping) else {check_component(model, component): model}
        if not parts:
            raise ValueError("no parts of a pipeline were named")
        configs, state, header = _pipeline_file(parts, naming, adapter_name, per_layer_ranks)
        file = DIFFUSERS_FILE
    with _complete_folder(Path(path)) as scratch:
        if naming == "peft":
            configs[0].save_pretrained(str(scratch))
        save_file(_unshared(state), scratch / file, metadata=header)
    return _readers(naming, configs, state)


def _pipeline_file(
    parts: Mapping[str, nn.Module], naming: str, adapter_name: str, per_layer_ranks: bool
) -> tuple[list[LoraConfig], dict[str, Tensor], dict[str, str]]:
    """(LoRAs, tensors, header) of a file with the parts {component: adapted model} of a pipeline."""
    configs: list[LoraConfig] = []
    state: dict[str, Tensor] = {}
    described: dict[str, object] = {}
    two_encoders = has_second_encoder(parts)
    for name, part in parts.items():
        component = check_component(part, name)
        lora, own = to_lora(part, adapter_name, per_layer_ranks)
        configs.append(lora)
        if naming == "diffusers":
            state |= diffusers_names(own, part, component)
            described |= diffusers_metadata(lora, component)
        else:
            state |= kohya_names(own, part, component, float(lora.r), two_encoders)
    return configs, state, diffusers_header(described) if described else {"format": "pt"}


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own: safetensors stores no tied weights."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return tensors


def _readers(naming: str, configs: list[LoraConfig], state: Mapping[str, Tensor]) -> str:
    """A sentence: the rank of what was written, and the programs that read it."""
    rank = max(config.r for config in configs)
    mixed = any(config.rank_pattern for config in configs)
    said = f"a LoRA of rank {rank}" + (" at most, fewer in some layers" if mixed else "")
    if naming == "kohya":
        return (
            f"{said}, for ComfyUI, Forge, A1111, InvokeAI, sd-scripts and stable-diffusion.cpp; diffusers reads it too."
        )
    if naming == "diffusers":
        return (
            f"{said}, for diffusers (pipe.load_lora_weights). ComfyUI and the like read it for transformers, but only "
            "half the layers of a UNet: write naming='kohya' for them."
        )
    # the frozen weight of an adapted embedding, which PEFT saves with it, is passed over by servers
    others = sorted(key for key in state if ".lora_" not in key and not key.endswith(".base_layer.weight"))
    if mixed:
        return f"{said}, for PEFT and transformers; llama.cpp and SGLang need one rank in all layers."
    if others:
        return f"{said}, for PEFT and transformers; servers refuse what it trains beside the LoRA, such as {others[0]}."
    served = next((allowed for allowed in SERVED_RANKS if allowed >= rank), None)
    vllm = f"vLLM (--max-lora-rank {served})" if served else f"not for vLLM, whose ranks end at {SERVED_RANKS[-1]}"
    return f"{said}, for PEFT, transformers, {vllm}, SGLang (--max-lora-rank {rank}) and llama.cpp (convert_lora_to_gguf.py)."


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
