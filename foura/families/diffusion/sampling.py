"""Generating images with an adapted diffusion model, at any scale of its adapter."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from foura.families.diffusion.backbone import DiffusionBackbone
from foura.methods.state import load_adapter_parameters, whole

AT_ONCE = 32  # images

Watch = Callable[[int, dict[str, Tensor]], None]


@torch.no_grad()
def sample(
    model: nn.Module,
    backbone: DiffusionBackbone,
    captions: list[str],
    seeds: list[int],
    steps: int,
    guidance: float,
    device: torch.device,
    watch: Watch | None = None,
) -> Tensor:
    """Images (n, 3, H, W) in 0..1, on the CPU, by deterministic DDIM (arXiv 2010.02502).

    An image depends on its caption and its seed alone, not on the others that are generated with it.

    Args:
        captions, seeds: one of each per image.
        guidance: scale of classifier-free guidance (arXiv 2207.12598); 1 is none.
        watch: called before each step with its number (from 0) and the model's inputs.
    """
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
    scheduler.set_timesteps(steps, device=device)
    images = []
    for start in range(0, len(captions), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        latents = _noise(model, backbone, seeds[part]).to(device) * scheduler.init_noise_sigma
        tokens = backbone.tokenize(captions[part]).to(device)
        empty = backbone.tokenize([""]).to(device).expand_as(tokens)
        for number, timestep in enumerate(scheduler.timesteps):
            inputs = {"noisy": scheduler.scale_model_input(latents, timestep), "captions": tokens}
            inputs["timestep"] = timestep.expand(len(latents))
            if watch is not None:
                watch(number, inputs)
            predicted = _guided(model, inputs, empty, guidance)
            latents = scheduler.step(predicted.float(), timestep, latents).prev_sample
        images.append(backbone.decode(latents).cpu())
    return torch.cat(images)


def _noise(model: nn.Module, backbone: DiffusionBackbone, seeds: list[int]) -> Tensor:
    """The latents (n, C, h, w) that sampling starts from, each drawn with its own seed."""
    unet: Any = next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "unet")
    shape = (unet.config.in_channels, backbone.latent_size, backbone.latent_size)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _guided(model: nn.Module, inputs: dict[str, Tensor], empty: Tensor, guidance: float) -> Tensor:
    """The prediction, moved away from that for the `empty` caption by classifier-free guidance."""
    if guidance == 1.0:
        return model(**inputs)
    both = {key: torch.cat([value, value]) for key, value in inputs.items()}
    both["captions"] = torch.cat([empty, inputs["captions"]])
    without, predicted = model(**both).chunk(2)
    return without + guidance * (predicted - without)


@contextmanager
def adapter_scale(model: nn.Module, alpha: float, before: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Within the context every adapted layer returns base + alpha · (adapted - base): the paper's blending (sec. 3.1).

    It works for every method; for FouRA and LoRA it equals `set_scale`, because no gate depends on alpha. A bare model is
    blended in its weights, which is the same in a linear layer.

    Args:
        model: adapted by PEFT, or bare.
        alpha: 1 is the trained model, 0 the backbone.
        before: {parameter name: value in the backbone} of the frozen weights that the adapter's start has changed, or of
            the trained weights of a bare model.
    """
    if alpha == 1.0:
        yield
        return
    before = before or {}
    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    weights = {name: before.get(f"{name.removeprefix('base_model.model.')}.weight") for name in layers}
    trained = {name: whole(value.detach()).clone() for name, value in model.named_parameters() if name in before}
    handles = [layer.register_forward_hook(_blend(alpha, weights[name])) for name, layer in layers.items()]
    load_adapter_parameters(
        model, {name: torch.lerp(before[name].to(value), value, alpha) for name, value in trained.items()}
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        load_adapter_parameters(model, trained)


def _blend(alpha: float, weight: Tensor | None) -> Callable[[Any, tuple[Any, ...], Tensor], Tensor]:
    """A forward hook of an adapted layer; `weight`: the backbone's, where the layer's own differs from it."""

    def blend(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        base = layer.base_layer
        if weight is None:
            return torch.lerp(base(*inputs), output, alpha)
        return torch.lerp(torch.func.functional_call(base, {"weight": weight.to(base.weight)}, inputs), output, alpha)

    return blend
