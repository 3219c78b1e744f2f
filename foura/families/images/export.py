"""A merged image model in the form that timm loads."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from foura.bundled.vit import BUNDLED_VIT

SIDE = 64  # pixels of the example's images, before the model's own preprocessing


def save_merged(model: Any, cfg: DictConfig, out: Path) -> None:
    """Write the model of `cfg` (the config group) to the new folder `out`: weights alone for the bundled ViT, else a timm
    folder.
    """
    if cfg.name == "embedded":
        out.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, out / "model.safetensors")
        return
    sized = cfg.img_size and "img_size" in inspect.signature(type(model)).parameters  # convolutions take any size
    with torch.no_grad():
        save_for_hf(model, str(out), model_args={"img_size": cfg.img_size} if sized else None, safe_serialization=True)


def load_merged(cfg: DictConfig, folder: Path) -> nn.Module:
    """Load what `save_merged` wrote, as timm does."""
    if cfg.name != "embedded":
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    state = load_file(folder / "model.safetensors")
    model = VisionTransformer(**BUNDLED_VIT, num_classes=len(state["head.weight"]))
    model.load_state_dict(state)
    return model


def example(backbone: Any) -> dict[str, Tensor]:
    """Two images of noise, preprocessed, as keyword arguments of the model."""
    noise = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    images = [backbone.preprocess(Image.fromarray(pixels).convert(backbone.image_mode)) for pixels in noise]
    return {"x": torch.stack(images)}
