"""Text-to-image diffusion models of diffusers: the bundled UNet, a hub id, or the directory of a Stable Diffusion pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler
from omegaconf import DictConfig
from torch import Tensor

from foura.backbone import Backbone, choose_targets
from foura.bundled.caption_unet import Denoiser, bytes_lost, caption_bytes, fresh_unet
from foura.bundled.unet import BUNDLED_NOISE, BUNDLED_UNET, FOLDER
from foura.errors import UserError
from foura.families.diffusion.pipeline import load_pipeline
from foura.families.transformers_models import quiet
from foura.files import read_weights, unfit

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # self- and cross-attention (paper sec. 3.3)
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
HEAD = "unet.conv_out"


@dataclass(frozen=True)
class DiffusionBackbone(Backbone):
    """A `Denoiser`, and what turns images and captions into its inputs.

    Attributes:
        scheduler: the noise schedule that the UNet was trained with.
        vae: between pixels and latents; None where the UNet works on pixels.
        size: side of an image, pixels.
        tokenize: captions -> tokens (S, T).
        lost: the number of a caption's tokens that `tokenize` leaves out, because it is too long.
    """

    scheduler: Any
    vae: Any
    size: int
    tokenize: Callable[[list[str]], Tensor]
    lost: Callable[[str], int]

    @property
    def latent_size(self) -> int:
        """Side of the latents; of the images, without a VAE."""
        return self.size if self.vae is None else self.size // 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Images (S, 3, H, W) in 0..1 -> latents (S, C, h, w) at the scale that the UNet was trained with."""
        pixels = pixels * 2 - 1
        if self.vae is None:
            return pixels
        vae: Any = self.vae
        return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (S, C, h, w) -> images (S, 3, H, W) in 0..1."""
        if self.vae is not None:
            vae: Any = self.vae
            latents = vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample.float()
        return ((latents + 1) / 2).clamp(0, 1)


def build_unet(cfg: DictConfig) -> DiffusionBackbone:
    """The backbone of `cfg` (the config group).

    Raises:
        UserError: parts of a pipeline that are not there, or weights that do not fit.
    """
    quiet()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    if isinstance(cfg.pretrained, str):
        raise UserError(
            "backbone.pretrained is true or false here; name a pipeline's directory with backbone.name=PATH."
        )
    model: Any
    model, parts = _bundled(cfg.pretrained) if cfg.name == "embedded" else load_pipeline(cfg)
    model.requires_grad_(False).train()
    if cfg.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    targets = choose_targets(model, cfg.target_modules, TARGETS, HEAD)
    if cfg.text_encoder and cfg.target_modules is None:
        if cfg.name == "embedded":
            raise UserError(
                "backbone.text_encoder=true: the bundled UNet's text encoder is a table without layers to adapt."
            )
        targets += choose_targets(model, list(TEXT_TARGETS), TEXT_TARGETS, "")
    return DiffusionBackbone(model=model, targets=targets, head=HEAD, new=(), body="unet", **parts)


def _bundled(pretrained: bool) -> tuple[Denoiser, dict[str, Any]]:
    """(model, the fields that `DiffusionBackbone` has beside `Backbone`'s)."""
    model = fresh_unet()
    if pretrained:
        path = FOLDER / "model.safetensors"
        if not path.is_file():
            raise UserError(f"the weights of the bundled UNet are not at {path}; `foura pretrain unet` makes them.")
        state = read_weights(path)
        wrong = unfit(state, model.state_dict())
        if wrong:
            raise UserError(
                f"{path} does not hold the weights of the bundled UNet ({wrong}); `foura pretrain unet` remakes them."
            )
        model.load_state_dict(state)
    scheduler = DDPMScheduler(**BUNDLED_NOISE)
    size = BUNDLED_UNET["sample_size"]
    return model, {"scheduler": scheduler, "vae": None, "size": size, "tokenize": caption_bytes, "lost": bytes_lost}
