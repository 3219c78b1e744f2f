"""Pipelines of Stable Diffusion, loaded part by part from the hub or from a directory: untrusted, so checked first."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from omegaconf import DictConfig
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from foura.bundled.caption_unet import Denoiser
from foura.errors import UserError, reason
from foura.families.model_files import check_model, check_parameters
from foura.files import here

MOST_TIMESTEPS, MOST_LATENTS = 100_000, 1024  # of any real scheduler, and of the side of any UNet's latents
CONFIGS: tuple[str, ...] = ("unet/config.json", "vae/config.json", "text_encoder/config.json")
CONFIGS += ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "model_index.json")
PREDICTIONS = ("epsilon", "v_prediction")
WEIGHTS: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}  # safetensors: a pickle can run code


def load_pipeline(cfg: DictConfig) -> tuple[Denoiser, dict[str, Any]]:
    """(model, the fields that `DiffusionBackbone` has beside `Backbone`'s) of the pipeline `cfg.name`.

    Raises:
        UserError: a part that cannot be loaded, lacks weights, or does not fit the others.
    """
    place = _place(cfg)
    try:
        described = _described(place, cfg)
        scheduler: Any = DDPMScheduler.from_pretrained(place, subfolder="scheduler")
        tokenizer = CLIPTokenizer.from_pretrained(place, subfolder="tokenizer")
        unet, text, vae, missing = _models(place, described, cfg)
    except UserError:
        raise
    except Exception as error:  # diffusers, transformers and the hub raise many kinds; all of them say what is missing
        raise UserError(
            f"backbone.name={cfg.name}: the pipeline could not be loaded ({reason(error)}). Without a network, name a local "
            "directory that diffusers' save_pretrained wrote: backbone.name=PATH."
        ) from error
    for part, names in missing.items():
        if names:
            raise UserError(
                f"backbone.name={cfg.name}: {len(names)} weights of its {part} are missing, such as {min(names)}."
            )
    _check_sizes(unet, text, vae, cfg)
    _check_scales(unet, vae, scheduler, cfg)
    size = _image_size(unet, vae, cfg)

    def tokenize(captions: list[str]) -> Tensor:
        options: dict[str, Any] = {
            "padding": "max_length",
            "max_length": tokenizer.model_max_length,
            "truncation": True,
        }
        return tokenizer(captions, **options, return_tensors="pt").input_ids

    def lost(caption: str) -> int:
        return max(0, len(tokenizer(caption, truncation=False).input_ids) - tokenizer.model_max_length)

    parts = {"scheduler": scheduler, "vae": vae, "size": size, "tokenize": tokenize, "lost": lost}
    return Denoiser(unet, text), parts


def _place(cfg: DictConfig) -> str:
    """The hub id or the directory of a pipeline."""
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


def _described(place: str, cfg: DictConfig) -> dict[str, Any]:
    """{part: its config}, checked before a model is built from it."""
    check_model(place, cfg, CONFIGS)
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "scheduler": DDPMScheduler}
    described: dict[str, Any] = {part: kind.load_config(place, subfolder=part) for part, kind in kinds.items()}
    text = CLIPTextConfig.from_pretrained(place, subfolder="text_encoder")
    timesteps = described["scheduler"].get("num_train_timesteps", 1000)
    if not 0 < timesteps <= MOST_TIMESTEPS:
        raise ValueError(f"the scheduler says num_train_timesteps={timesteps}")
    folder = here(place)
    if folder is not None:
        check_parameters(lambda: AutoencoderKL.from_config(described["vae"]), folder / "vae", cfg)
    if folder is not None and cfg.pretrained:
        check_parameters(lambda: UNet2DConditionModel.from_config(described["unet"]), folder / "unet", cfg)
        check_parameters(lambda: CLIPTextModel(text), folder / "text_encoder", cfg)
    return {**described, "text_encoder": text}


def _models(place: str, described: dict[str, Any], cfg: DictConfig) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(UNet, text encoder, VAE, {part: names of weights that were not found})."""
    dtype = getattr(torch, cfg.torch_dtype or "float32")
    unet: Any
    text: Any
    missing = {}
    if cfg.pretrained:
        clip: Any = CLIPTextModel
        text, found = clip.from_pretrained(place, subfolder="text_encoder", dtype=dtype, **WEIGHTS)
        missing["text_encoder"] = found["missing_keys"]
        unet, found = UNet2DConditionModel.from_pretrained(place, subfolder="unet", torch_dtype=dtype, **WEIGHTS)
        missing["unet"] = found["missing_keys"]
    else:
        text = CLIPTextModel(described["text_encoder"]).to(dtype)
        unet = UNet2DConditionModel.from_config(described["unet"]).to(dtype)
    vae: Any
    vae, found = AutoencoderKL.from_pretrained(place, subfolder="vae", **WEIGHTS)
    vae.requires_grad_(False).eval()
    return unet, text, vae, {**missing, "vae": found["missing_keys"]}


def _check_sizes(unet: Any, text: Any, vae: Any, cfg: DictConfig) -> None:
    """Refuse parts that do not fit each other: each has a config.json of its own."""
    own = unet.config
    pairs = {
        "the UNet's in_channels and the VAE's latent_channels": (own.in_channels, vae.config.latent_channels),
        "the UNet's in_channels and out_channels": (own.in_channels, own.out_channels),
        "the UNet's cross_attention_dim and the text encoder's hidden_size": (
            own.cross_attention_dim,
            text.config.hidden_size,
        ),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise UserError(f"backbone.name={cfg.name}: {what} are {one} and {other}, so they do not go together.")


def _check_scales(unet: Any, vae: Any, scheduler: Any, cfg: DictConfig) -> None:
    """Refuse numbers and choices in the parts' configs that no training could use."""
    side, scale, prediction = unet.config.sample_size, vae.config.scaling_factor, scheduler.config.prediction_type
    if not isinstance(side, int) or not 1 <= side <= MOST_LATENTS:
        raise UserError(
            f"backbone.name={cfg.name}: the UNet's sample_size={side} must be a whole number from 1 to {MOST_LATENTS}."
        )
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UserError(f"backbone.name={cfg.name}: the VAE's scaling_factor={scale} must be a number above 0.")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"backbone.name={cfg.name}: the scheduler's prediction_type={prediction} is not known; choose one of "
            f"{', '.join(PREDICTIONS)}."
        )


def _image_size(unet: Any, vae: Any, cfg: DictConfig) -> int:
    """Side of the images, pixels: backbone.img_size, or what the UNet was made for."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    size = cfg.img_size or unet.config.sample_size * factor
    if size % factor:
        raise UserError(f"backbone.img_size={size} must be a multiple of {factor}, the VAE's step.")
    return size
