"""The bundled diffusion model: the shape of a small conditional UNet pretrained on letters, and the place of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BUNDLED_UNET: dict[str, Any] = {  # arguments of diffusers' UNet2DConditionModel, on 16 x 16 RGB pixels
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
# Arguments of its schedulers. Velocity, and sampling from the very last timestep: noise predicted there would hardly depend
# on an image's colours, so an adapter could not change them.
BUNDLED_NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
CAPTION_BYTES = 8  # the last UTF-8 bytes of a caption, which are read; the caption of a letter ends with it
FOLDER = Path(__file__).parent / "weights" / "unet_letters"
