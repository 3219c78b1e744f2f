"""Text-to-image diffusion models of diffusers (`backbone=unet`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.families.family import Family, Parts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foura.backbone import Backbone

# keys for generating and measuring images
SAMPLING = (
    *("evaluation.prompts", "evaluation.max_prompts", "evaluation.seeds_per_prompt", "evaluation.strengths"),
    *("evaluation.sampling_steps", "evaluation.guidance", "evaluation.pictures_every", "evaluation.judge_every"),
    *("evaluation.features", "evaluation.lpips", "evaluation.clip"),
)


def _build(cfg: DictConfig) -> Parts:
    import torch

    from foura.families.diffusion.backbone import build_unet
    from foura.families.diffusion.data import prepare_captioned
    from foura.families.diffusion.sources import open_captioned
    from foura.families.diffusion.task import Diffusion

    splits = open_captioned(cfg.dataset)
    backbone = build_unet(cfg.backbone)
    # a finished run may be exported or merged where there is no GPU
    on_gpu = cfg.trainer.accelerator in ("gpu", "cuda") and torch.cuda.is_available()
    if backbone.vae is not None and on_gpu:
        backbone.vae.to("cuda")
    data = prepare_captioned(
        splits, cfg.dataset, cfg.seed, backbone.size, backbone.tokenize, backbone.encode, backbone.lost
    )
    return Parts(backbone, data, lambda model: Diffusion(model, backbone, data, cfg))


def _save_merged(backbone: Any, model: Any, cfg: DictConfig, out: Path) -> None:
    from foura.families.diffusion.export import save_merged

    save_merged(backbone, model, out)


def _load_merged(backbone: Any, cfg: DictConfig, folder: Path) -> nn.Module:
    from foura.families.diffusion.export import load_merged

    return load_merged(backbone, folder)


def _save_as_lora(naming: str, model: Any, out: Path, per_layer_ranks: bool) -> str:
    from foura.families.diffusion.export import save_parts_as_lora

    return save_parts_as_lora(model, out, naming, per_layer_ranks)


def _backbone(cfg: DictConfig, saved: Mapping[str, Any]) -> Backbone:
    from foura.families.diffusion.backbone import build_unet

    return build_unet(cfg.backbone)


def _example(backbone: Any) -> dict[str, Tensor]:
    from foura.families.diffusion.export import example

    return example(backbone)


def _pretraining_loss(parts: Parts, model: Any, cfg: DictConfig) -> float:
    from foura.families.diffusion.pretraining import pretraining_batches

    return parts.task(model).mean_loss(pretraining_batches(parts))


def _pretrain(out: Path | None) -> None:
    from foura.bundled.pretrain_unet import STEPS, pretrain_unet
    from foura.bundled.unet import FOLDER

    pretrain_unet(out or FOLDER, steps=STEPS, seed=0)


INFERENCE = """from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(BASE)
pipe.load_lora_weights(LORA)  # what `foura export RUN --to lora LORA --freeze` wrote
pipe("a photo of sks dog", num_inference_steps=20).images[0].save("image.png")
"""


FAMILY = Family(
    name="unet",
    sources=("letters", "imagefolder", "hf"),
    bundled=("letters",),
    formats={"captions": ("kernel", "loss")},
    uses={
        "": (
            "backbone.text_encoder",
            "backbone.gradient_checkpointing",
            "dataset.eval_limit",
            "dataset.too_long",
            *SAMPLING,
        ),
        "own backbone": ("backbone.img_size", "backbone.torch_dtype"),
        "own data": (
            *("dataset.path", "dataset.splits", "dataset.prompt", "dataset.columns.text"),
            *("dataset.background", "dataset.unreadable"),
        ),
        "dataset=hf": ("dataset.config", "dataset.columns.image"),
        "bundled data": ("dataset.style",),
        "text encoder": ("optimizer.text_encoder_lr",),
    },
    bundled_model="bundled UNet",
    bundled_on="plain coloured letters",
    inference=INFERENCE,
    causal=False,
    build=_build,
    save_merged=_save_merged,
    load_merged=_load_merged,
    backbone=_backbone,
    example=_example,
    save_as_lora={"lora": partial(_save_as_lora, "diffusers"), "kohya": partial(_save_as_lora, "kohya")},
    pretraining_loss=_pretraining_loss,
    pretrain=_pretrain,
)
