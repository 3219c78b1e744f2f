"""The modules of the bundled diffusion model: a UNet, and a text encoder that reads bytes."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from foura.bundled.unet import BUNDLED_UNET, CAPTION_BYTES


class Denoiser(nn.Module):
    """A UNet and the text encoder whose output it attends to; one model, so that one adapter can go on both.

    Its module names are those of a diffusers pipeline ("unet.…", "text_encoder.…"), and so are the keys of its adapters.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timestep: Tensor, captions: Tensor) -> Tensor:
        """The predicted noise (or velocity) for latents (S, C, H, W), timesteps (S,) and caption tokens (S, T).

        It is of the latents' type. Weights of half precision get inputs of their own: random numbers are drawn in float32,
        and where images are generated there is no autocast.
        """
        text = self.text_encoder(captions)
        context = text if isinstance(text, Tensor) else text.last_hidden_state
        unet: Any = self.unet
        own = unet.conv_in.weight.dtype
        return unet(noisy.to(own), timestep, context.to(own)).sample.to(noisy.dtype)


class CaptionBytes(nn.Module):
    """The bundled text encoder: a vector per byte plus a vector per position, (S, CAPTION_BYTES) -> (S, CAPTION_BYTES, d).

    Token 256 is padding, in front of short captions; a caption of padding alone is the empty one.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(257, d), nn.Embedding(CAPTION_BYTES, d)

    def forward(self, captions: Tensor) -> Tensor:
        return self.byte(captions) + self.place.weight


def caption_bytes(captions: list[str]) -> Tensor:
    """Caption tokens of `CaptionBytes`, (S, CAPTION_BYTES)."""
    rows = [list(caption.encode()[-CAPTION_BYTES:]) for caption in captions]
    return torch.tensor([[256] * (CAPTION_BYTES - len(row)) + row for row in rows])


def bytes_lost(caption: str) -> int:
    """The number of bytes at a caption's beginning that `caption_bytes` leaves out."""
    return max(0, len(caption.encode()) - CAPTION_BYTES)


def fresh_unet() -> Denoiser:
    """The bundled model with random weights."""
    unet: Any = UNet2DConditionModel(**BUNDLED_UNET)
    return Denoiser(unet, CaptionBytes(BUNDLED_UNET["cross_attention_dim"]))
