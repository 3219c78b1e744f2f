"""PEFT's own LoRA in the form that `export` writes: programs read diffusers' and kohya's names, which PEFT does not write."""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Conv2d, Linear, LoraLayer
from torch import Tensor, nn

from foura.adapter.freeze import named_layers

# starts that leave the frozen weight as it is, so that the LoRA alone is the whole update
KEEPING = (True, False, "gaussian", "orthogonal", "eva", "mica")


def lora_layers(model: nn.Module, adapter_name: str) -> dict[str, LoraLayer]:
    """{module name: layer} of PEFT's LoRA, without PEFT's wrapper prefix.

    Raises:
        ValueError: something that is more than a LoRA on linear layers and convolutions.
    """
    layers = {name: layer for name, layer in named_layers(model, LoraLayer).items() if adapter_name in layer.r}
    for name, layer in layers.items():
        if not isinstance(layer, (Linear, Conv2d)):
            raise ValueError(
                f"{name} is a {type(layer.get_base_layer()).__name__}, whose LoRA only PEFT's own naming holds."
            )
        if adapter_name in layer.lora_variant or layer.lora_bias[adapter_name]:
            raise ValueError(f"the adapter {adapter_name!r} is a variant of LoRA, which only PEFT's own naming holds.")
    return layers


def check_keeping(config: LoraConfig) -> None:
    """Refuse a LoRA that has taken a part out of the frozen weights.

    Raises:
        ValueError: its update is not that of the LoRA alone.
    """
    if config.init_lora_weights not in KEEPING:
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} changes the frozen weights at the start, so that the LoRA alone "
            "is not the whole update: merge it."
        )


@torch.no_grad()
def plain_factors(layer: Any, adapter_name: str) -> tuple[Tensor, Tensor]:
    """Of a LoraLayer: (lora_A (r, in) or (r, in_channels, *kernel), lora_B (out, r) with the scaling in it)."""
    down, up = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
    return down.detach(), up.detach().flatten(1) * layer.scaling[adapter_name]
