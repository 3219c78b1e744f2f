"""Exports of a diffusion model: every part that was trained, in the form that diffusers loads, or in kohya's."""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from foura.adapter import save_as_lora
from foura.adapter.freeze import named_layers
from foura.backbone import target_layers
from foura.bundled.caption_unet import Denoiser

PARTS = ("unet", "text_encoder")  # of a `Denoiser`, each a folder of a pipeline


def save_parts_as_lora(model: Any, out: Path, naming: str, per_layer_ranks: bool) -> str:
    """Write the adapters of all parts that have one into one file; returns who reads it."""
    parts: dict[str, Any] = {name: model.get_submodule(f"base_model.model.{name}") for name in PARTS}
    adapted = {name: part for name, part in parts.items() if named_layers(part, BaseTunerLayer)}
    for part in adapted.values():
        part.peft_config = model.peft_config  # each part by itself, as in diffusers
    return save_as_lora(adapted, out, naming=naming, per_layer_ranks=per_layer_ranks)


def save_merged(backbone: Any, model: Any, out: Path) -> None:
    """Write the UNet, and the text encoder if it was adapted, each into the folder that it has in a pipeline."""
    adapted = {name.partition(".")[0] for name in target_layers(model, backbone.targets)}
    for name in PARTS:
        if name == "unet" or name in adapted:
            getattr(model, name).save_pretrained(str(out / name))


def load_merged(backbone: Any, folder: Path) -> nn.Module:
    """Load what `save_merged` wrote."""
    parts = {}
    for name in PARTS:
        part = getattr(backbone.model, name)
        written = folder / name
        parts[name] = type(part).from_pretrained(str(written), use_safetensors=True) if written.is_dir() else part
    return Denoiser(**parts)


def example(backbone: Any) -> dict[str, Tensor]:
    """Latents of noise, a timestep and a caption, as keyword arguments of a `Denoiser`."""
    side, generator = backbone.latent_size, torch.Generator().manual_seed(0)
    noisy = torch.randn(1, backbone.model.unet.config.in_channels, side, side, generator=generator)
    timestep = torch.tensor([backbone.scheduler.config.num_train_timesteps // 2])
    return {"noisy": noisy, "timestep": timestep, "captions": backbone.tokenize(["an image"])}
