"""The bundled ViT: the shape of a small timm ViT pretrained on rendered glyphs, and the place of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BUNDLED_VIT: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 4,
    "class_token": True,
    "global_pool": "token",
}

WEIGHTS = Path(__file__).parent / "weights" / "vit_glyphs.safetensors"

# of pixels in 0..1, measured on the glyphs: the data to adapt to must not influence the pretrained model
INPUT_MEAN = (0.30,)
INPUT_STD = (0.30,)
