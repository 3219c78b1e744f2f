"""Drawing pictures with an adapted diffusion model, at any strength of its adapter."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from foura.families.diffusion.backbone import DiffusionBackbone
from foura.methods.state import load_adapter_parameters, whole

AT_ONCE = 32  # pictures

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
    """Pictures (n, 3, H, W) in 0..1, on the CPU, by deterministic DDIM; a picture depends on its caption and seed alone.

    Args:
        captions, seeds: one of each a picture.
        guidance: of classifier-free guidance; 1 is none.
        watch: told each step (from 0) and what the model was called with.
    """
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
    scheduler.set_timesteps(steps, device=device)
    unet: Any = _unet(model)
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    if backbone.vae is not None:
        side = backbone.size // 2 ** (len(backbone.vae.config.block_out_channels) - 1)
        shape = (shape[0], side, side)
    made = []
    for start in range(0, len(captions), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds[part]]
        latents = torch.stack(noise).to(device) * scheduler.init_noise_sigma
        tokens = backbone.tokenize(captions[part]).to(device)
        empty = backbone.tokenize([""]).to(device).expand_as(tokens)
        for number, timestep in enumerate(scheduler.timesteps):
            inputs = {"noisy": scheduler.scale_model_input(latents, timestep), "captions": tokens}
            inputs["timestep"] = timestep.expand(len(latents))
            if watch is not None:
                watch(number, inputs)
            if guidance == 1.0:
                predicted = model(**inputs)
            else:
                both = {key: torch.cat([value, value]) for key, value in inputs.items()} | {
                    "captions": torch.cat([empty, tokens])
                }
                without, predicted = model(**both).chunk(2)
                predicted = without + guidance * (predicted - without)
            latents = scheduler.step(predicted.float(), timestep, latents).prev_sample
        made.append(backbone.decode(latents).cpu())
    return torch.cat(made)


@contextmanager
def strength(model: nn.Module, alpha: float, before: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Within the context every adapted layer gives base + alpha · (adapted - base): the paper's blending (sec. 3.1).

    The same for every method; for FouRA and LoRA it is what `set_scale` does, as no gate looks at alpha. A bare model is
    blended in its weights, which comes to the same in a linear layer.

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
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
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
    """A forward hook of an adapted layer; `weight` is the backbone's, where the layer's own is another."""

    def blend(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        base = layer.base_layer
        if weight is None:
            return torch.lerp(base(*inputs), output, alpha)
        return torch.lerp(torch.func.functional_call(base, {"weight": weight.to(base.weight)}, inputs), output, alpha)

    return blend


def _unet(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "unet")
