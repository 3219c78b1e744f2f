"""Whole models: a training step with AdamW, for a ViT-B, a LLaMA of about 100 M parameters and a UNet."""

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from layers import config
from peft import get_peft_model
from timing import Row, interleaved, row, saved_mib
from torch import Tensor, nn

GATED = ("foura_gated", "foura_softmax")  # with the scope of the gate that suits the model
METHODS = ("lora", "foura_dct", "foura_dft", *GATED, "dora")
RANK = 16

Loss = Callable[[nn.Module], Tensor]


def vit(device: str, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any], Loss]:
    """timm's ViT-B/16, 2 images of 224 x 224."""
    x = torch.randn(2, 3, 224, 224, device=device, dtype=dtype)
    options = {"targets": ["qkv", "proj", "fc1", "fc2"], "scope": "sequence", "output_splits": {"qkv": 3}}
    return timm.create_model("vit_base_patch16_224"), options, lambda model: model(x).float().square().mean()


def llama(device: str, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any], Loss]:
    """LLaMA, hidden 768, 12 layers; 2 x 512 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048}
    ids = torch.randint(0, 8192, (2, 512), device=device)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=8192))
    return model, {"targets": targets, "scope": "token"}, lambda model: model(input_ids=ids, labels=ids).loss


def unet(device: str, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any], Loss]:
    """diffusers' UNet2DConditionModel, channels 128 to 512; 2 latents of 32 x 32 and 77 text tokens."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(128, 256, 512),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=256,
    )
    x, text = (torch.randn(shape, device=device, dtype=dtype) for shape in ((2, 4, 32, 32), (2, 77, 256)))
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    return (
        model,
        {"targets": targets, "scope": "sequence"},
        lambda model: model(x, 7, text).sample.float().square().mean(),
    )


MODELS = {"vit_b16": vit, "llama_100m": llama, "unet_32": unet}


def measure(name: str, rounds: int, device: str, dtype: torch.dtype, say: Callable[[str], None]) -> list[Row]:
    """Step time and saved memory of every method on one model."""
    torch.manual_seed(0)
    base, options, loss = MODELS[name](device, dtype)
    targets, scope = options.pop("targets"), options.pop("scope")
    say(f"{name}: {sum(p.numel() for p in base.parameters()) / 1e6:.0f} M parameters")
    models, optimizers = {}, {}
    for method in METHODS:
        kind = f"{method}_{scope}" if method in GATED else method
        extra = options if kind.startswith("foura") else {}
        adapter = config(kind, RANK, targets, **extra)
        models[method] = get_peft_model(copy.deepcopy(base), adapter, autocast_adapter_dtype=False).to(device, dtype)
        trained = [parameter for parameter in models[method].parameters() if parameter.requires_grad]
        optimizers[method] = torch.optim.AdamW(trained, lr=1e-4)

    def step(method: str) -> None:
        loss(models[method]).backward()
        optimizers[method].step()
        optimizers[method].zero_grad()

    rows = interleaved(name, "step", {method: (lambda m=method: step(m)) for method in METHODS}, rounds, device)
    kept = {method: saved_mib(model, lambda model=model: loss(model)) for method, model in models.items()}
    return rows + [row(name, method, "saved", "MiB", [value], [kept["lora"]]) for method, value in kept.items()]
