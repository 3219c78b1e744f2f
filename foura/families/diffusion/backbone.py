"""Text-to-image diffusion models by diffusers: the embedded UNet, a hub id, or a directory of a Stable Diffusion pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from omegaconf import DictConfig
from torch import Tensor

from foura.backbone import Backbone, check_layers, choose_targets
from foura.bundled.caption_unet import Denoiser, caption_bytes, fresh_embedded
from foura.bundled.unet import EMBEDDED_NOISE, EMBEDDED_UNET, FOLDER
from foura.errors import UserError, reason
from foura.files import here, read_weights, unfit

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # self- and cross-attention (paper sec. 3.3)
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
MOST_TIMESTEPS, MOST_LATENTS = 100_000, 1024
PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class DiffusionBackbone(Backbone):
    """A `Denoiser` and what is around it.

    Attributes:
        scheduler: the noise that it was trained with.
        vae: between pixels and latents; None where the UNet works on pixels.
        size: side of an image, pixels.
        tokenize: captions -> tokens (S, T).
    """

    scheduler: Any
    vae: Any
    size: int
    tokenize: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Images (S, 3, H, W) in 0..1 -> latents, scaled as the UNet knows them."""
        pixels = pixels * 2 - 1
        if self.vae is None:
            return pixels
        vae: Any = self.vae
        return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images (S, 3, H, W) in 0..1."""
        if self.vae is not None:
            vae: Any = self.vae
            latents = vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample.float()
        return ((latents + 1) / 2).clamp(0, 1)


def build_unet(cfg: DictConfig) -> DiffusionBackbone:
    """The backbone of `cfg` (the config group).

    Raises:
        UserError: parts of a pipeline that are not there, or weights that do not fit.
    """
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if isinstance(cfg.pretrained, str):
        raise UserError(
            "backbone.pretrained is true or false here; name a pipeline's directory with backbone.name=PATH."
        )
    model: Any
    model, parts = _embedded(cfg.pretrained) if cfg.name == "embedded" else _pipeline(cfg)
    model.requires_grad_(False).train()
    if cfg.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    targets = choose_targets(model, cfg.target_modules, TARGETS, "unet.conv_out")
    if cfg.text_encoder and cfg.target_modules is None:
        if cfg.name == "embedded":
            raise UserError(
                "backbone.text_encoder=true: the embedded UNet's text encoder is a table without layers to adapt."
            )
        targets += choose_targets(model, list(TEXT_TARGETS), TEXT_TARGETS, "")
    return DiffusionBackbone(model=model, targets=targets, head="unet.conv_out", new=(), body="unet", **parts)


def _embedded(pretrained: bool) -> tuple[Denoiser, dict[str, Any]]:
    model = fresh_embedded()
    if pretrained:
        path = FOLDER / "model.safetensors"
        if not path.is_file():
            raise UserError(f"the weights of the embedded UNet are not at {path}; `foura pretrain unet` makes them.")
        state = read_weights(path)
        wrong = unfit(state, model.state_dict())
        if wrong:
            raise UserError(
                f"{path} does not hold the weights of the embedded UNet ({wrong}); `foura pretrain unet` remakes them."
            )
        model.load_state_dict(state)
    scheduler = DDPMScheduler(**EMBEDDED_NOISE)
    size = EMBEDDED_UNET["sample_size"]
    return model, {"scheduler": scheduler, "vae": None, "size": size, "tokenize": caption_bytes}


def _pipeline(cfg: DictConfig) -> tuple[Denoiser, dict[str, Any]]:
    place = _pipeline_place(cfg)
    found: dict[str, dict[str, Any]] = {}
    try:
        scheduler, tokenizer, unet, text, vae = _load_pipeline(place, cfg, found)
    except UserError:
        raise
    except Exception as error:  # diffusers, transformers and the hub raise many kinds; all say what is missing
        raise UserError(
            f"backbone.name={cfg.name}: the pipeline could not be loaded ({reason(error)}). Without a network, name a local "
            "directory that diffusers' save_pretrained wrote: backbone.name=PATH."
        ) from error
    for part, loaded in found.items():
        if loaded["missing_keys"]:
            raise UserError(
                f"backbone.name={cfg.name}: {len(loaded['missing_keys'])} weights of its {part} are missing, such as "
                f"{min(loaded['missing_keys'])}."
            )
    length = tokenizer.model_max_length

    def tokenize(captions: list[str]) -> Tensor:
        return tokenizer(
            captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    _check_parts(unet, text, vae, scheduler, cfg)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    size = cfg.img_size or unet.config.sample_size * factor
    if size % factor:
        raise UserError(f"backbone.img_size={size} must be a multiple of {factor}, the VAE's step.")
    return Denoiser(unet, text), {"scheduler": scheduler, "vae": vae, "size": size, "tokenize": tokenize}


def _pipeline_place(cfg: DictConfig) -> str:
    """The hub id, or the directory of a pipeline."""
    place = str(cfg.name)
    folder = here(place)
    if (folder is None or not folder.is_dir()) and (place.startswith((".", "/", "~")) or place.count("/") != 1):
        raise UserError(f"backbone.name={cfg.name}: there is no such directory.")
    if folder is not None and not (folder / "unet").is_dir():
        raise UserError(
            f"backbone.name={cfg.name} is not a Stable Diffusion pipeline: it has no unet/ (expected unet, vae, text_encoder, "
            "tokenizer and scheduler, as diffusers' save_pretrained writes them)."
        )
    return place if folder is None else str(folder)


def _load_pipeline(place: str, cfg: DictConfig, found: dict[str, dict[str, Any]]) -> tuple[Any, Any, Any, Any, Any]:
    """(scheduler, tokenizer, UNet, text encoder, VAE); `found` gets what the loaders say of each part's weights."""
    dtype = getattr(torch, cfg.torch_dtype or "float32")
    # safetensors alone: a pickle can run code
    weights: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "scheduler": DDPMScheduler}
    described = {part: kind.load_config(place, subfolder=part) for part, kind in kinds.items()}
    text_described = transformers.CLIPTextConfig.from_pretrained(place, subfolder="text_encoder")
    check_layers([*described.values(), text_described.to_dict()], cfg.name)
    if not 0 < described["scheduler"].get("num_train_timesteps", 1000) <= MOST_TIMESTEPS:
        raise ValueError(f"the scheduler says num_train_timesteps={described['scheduler']['num_train_timesteps']}")
    scheduler = DDPMScheduler.from_pretrained(place, subfolder="scheduler")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place, subfolder="tokenizer")
    unet: Any
    if cfg.pretrained:
        clip: Any = transformers.CLIPTextModel
        text, found["text_encoder"] = clip.from_pretrained(place, subfolder="text_encoder", dtype=dtype, **weights)
        unet, found["unet"] = UNet2DConditionModel.from_pretrained(
            place, subfolder="unet", torch_dtype=dtype, **weights
        )
    else:
        text = transformers.CLIPTextModel(text_described).to(dtype)
        unet = UNet2DConditionModel.from_config(described["unet"]).to(dtype)
    vae, found["vae"] = AutoencoderKL.from_pretrained(place, subfolder="vae", **weights)
    vae.requires_grad_(False).eval()
    return scheduler, tokenizer, unet, text, vae


def _check_parts(unet: Any, text: Any, vae: Any, scheduler: Any, cfg: DictConfig) -> None:
    """That the parts of a pipeline fit each other: each has a config.json of its own."""
    pairs = {
        "the UNet's in_channels and the VAE's latent_channels": (unet.config.in_channels, vae.config.latent_channels),
        "the UNet's in_channels and out_channels": (unet.config.in_channels, unet.config.out_channels),
        "the UNet's cross_attention_dim and the text encoder's hidden_size": (
            unet.config.cross_attention_dim,
            text.config.hidden_size,
        ),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise UserError(f"backbone.name={cfg.name}: {what} are {one} and {other}, so they do not go together.")
    if not isinstance(unet.config.sample_size, int) or not 1 <= unet.config.sample_size <= MOST_LATENTS:
        raise UserError(
            f"backbone.name={cfg.name}: the UNet's sample_size={unet.config.sample_size} is no side of a square of latents."
        )
    scale = vae.config.scaling_factor
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UserError(f"backbone.name={cfg.name}: the VAE's scaling_factor={scale} must be a number above 0.")
    if scheduler.config.prediction_type not in PREDICTIONS:
        raise UserError(
            f"backbone.name={cfg.name}: the scheduler's prediction_type={scheduler.config.prediction_type} is not known; "
            f"choose one of {', '.join(PREDICTIONS)}."
        )
