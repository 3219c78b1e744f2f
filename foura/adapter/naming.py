"""The names that programs for diffusion models give the layers of a LoRA, part of a pipeline by part.

    peft       base_model.model.NAME.lora_A.weight
    diffusers  unet.NAME.lora_A.weight, text_encoder.text_model.NAME.lora_A.weight, …
    kohya      lora_unet_NAME_WITH_UNDERSCORES.lora_down.weight, .lora_up.weight, .alpha (sd-scripts' own names)

A CLIP text encoder's layers are named below `text_model` in all of these programs. transformers >= 5.6 has no such module
any more, so the name is put back here.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

# parts of a pipeline, and kohya's prefix of their layers; None where sd-scripts has a model of its own with other layers
COMPONENTS: dict[str, str | None] = {
    "unet": "lora_unet",
    "transformer": None,
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
}
CLIP_LAYERS = ("embeddings", "encoder", "final_layer_norm")  # the children of a CLIP text encoder without text_model


def component_of(model: nn.Module) -> str | None:
    """The part of a pipeline that a model of diffusers is; "text" for a model of transformers, None for any other."""
    for kind in type(bare(model)).__mro__:
        if kind.__module__.startswith(("diffusers.models.unets", "diffusers.models.transformers")):
            return "unet" if "UNet" in kind.__name__ else "transformer"
        if kind.__module__.startswith("transformers.models."):
            return "text"
    return None


def bare(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrapper, or the model itself."""
    get: Any = getattr(model, "get_base_model", None)
    return model if get is None else get()


def check_component(model: nn.Module, component: str | None) -> str:
    """The component to write: the one named, else the one that the model's class says, else "unet".

    Raises:
        ValueError: an unknown component, one that the model cannot be, or a text encoder that is not said to be one.
    """
    known = component_of(model)
    if component is None:
        if known == "text":
            raise ValueError(f"{type(bare(model)).__name__} is a text encoder: say which one with component=.")
        return known or "unet"
    if component not in COMPONENTS:
        raise ValueError(f"component={component!r} is not known; choose one of {', '.join(COMPONENTS)}")
    if known is not None and (known == "text") != component.startswith("text"):
        raise ValueError(f"component={component!r} does not go with a {type(bare(model)).__name__}.")
    if known == "transformer" and component == "unet":
        raise ValueError(
            f"{type(bare(model)).__name__} is a pipeline's transformer: as component='unet' no program loads it; use "
            "component='transformer'."
        )
    return component


def diffusers_names(state: Mapping[str, Tensor], model: nn.Module, component: str) -> dict[str, Tensor]:
    """PEFT's keys to diffusers'.

    Raises:
        ValueError: tensors that diffusers would not load.
    """
    return {
        f"{component}.{_outer(model, component)}{name}.{kind}": tensor
        for (name, kind), tensor in _layers(state, "diffusers").items()
    }


def diffusers_metadata(lora: LoraConfig, component: str) -> dict[str, object]:
    """The config as diffusers stores it in the file; without it, it guesses ranks and strengths from the shapes.

    Its names of layers have no `text_model`: PEFT takes them as the end of a name, which fits both kinds of CLIP.
    """
    fields = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
    values = {field: getattr(lora, field) for field in fields}
    return {
        f"{component}.{field}": sorted(value) if isinstance(value, set) else value for field, value in values.items()
    }


def diffusers_header(described: Mapping[str, object]) -> dict[str, str]:
    """The header of a safetensors file with the metadata of all its components."""
    return {"format": "pt", "lora_adapter_metadata": json.dumps(described)}


def kohya_names(
    state: Mapping[str, Tensor], model: nn.Module, component: str, alpha: float, second_encoder: bool
) -> dict[str, Tensor]:
    """PEFT's keys to kohya's: lora_unet_down_blocks_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha.

    A loader scales a layer by alpha / rank. `alpha` is the same in every layer, because diffusers loses alphas that
    differ; each layer's rank / alpha is multiplied into its lora_up.

    Args:
        second_encoder: the pipeline has two text encoders (SDXL), which makes the first one's prefix lora_te1.

    Raises:
        ValueError: a layer that is neither linear nor a convolution, another trained module, or a component whose layers
            have other names in sd-scripts.
    """
    prefix = COMPONENTS[component]
    if prefix is None or (component.startswith("text") and not _is_clip(model)):
        raise ValueError(
            f"kohya's format has no names for the layers of a {type(bare(model)).__name__}; use naming='diffusers', which "
            "ComfyUI reads too."
        )
    prefix = "lora_te1" if component == "text_encoder" and second_encoder else prefix
    result: dict[str, Tensor] = {}
    for (name, kind), tensor in _layers(state, "kohya's format").items():
        module = f"{prefix}_{(_outer(model, component) + name).replace('.', '_')}"
        if kind == "lora_A.weight":
            result[f"{module}.lora_down.weight"] = tensor
            result[f"{module}.alpha"] = torch.tensor(alpha)
        else:
            result[f"{module}.lora_up.weight"] = tensor * (tensor.shape[1] / alpha)
    return result


def has_second_encoder(components: Mapping[str, nn.Module]) -> bool:
    """True for the parts of a pipeline with two CLIP text encoders: the second is there, or the UNet is SDXL's."""
    config: Any = getattr(bare(components["unet"]), "config", None) if "unet" in components else None
    return "text_encoder_2" in components or getattr(config, "addition_embed_type", None) == "text_time"


def _layers(state: Mapping[str, Tensor], into: str) -> dict[tuple[str, str], Tensor]:
    """{(layer, "lora_A.weight" or "lora_B.weight"): tensor} of keys in PEFT's names."""
    found: dict[tuple[str, str], Tensor] = {}
    others = []
    for key, tensor in state.items():
        name, _, kind = key.removeprefix("base_model.model.").rpartition(".lora_")
        if kind in ("A.weight", "B.weight"):
            found[name, f"lora_{kind}"] = tensor
        else:
            others.append(key.removeprefix("base_model.model."))
    if others:
        raise ValueError(
            f"{into} holds only linear and convolution layers, not {', '.join(sorted(others)[:5])}, which this adapter "
            "trains too: use naming='peft', or merge."
        )
    return found


def _outer(model: nn.Module, component: str) -> str:
    """The missing "text_model." of a CLIP text encoder; empty for every other model."""
    lacking = component.startswith("text") and _is_clip(model) and not hasattr(bare(model), "text_model")
    return "text_model." if lacking else ""


def _is_clip(model: nn.Module) -> bool:
    inside: Any = bare(model)
    return all(hasattr(getattr(inside, "text_model", inside), name) for name in CLIP_LAYERS)
