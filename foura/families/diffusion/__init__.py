"""Text-to-image diffusion models of diffusers (`backbone=unet`)."""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from foura.families.family import Family, Parts


def _build(cfg: DictConfig) -> Parts:
    from foura.families.diffusion.backbone import build_unet
    from foura.families.diffusion.data import prepare_captioned
    from foura.families.diffusion.sources import open_captioned
    from foura.families.diffusion.task import Diffusion

    splits = open_captioned(cfg.dataset)
    backbone = build_unet(cfg.backbone)
    if backbone.vae is not None and cfg.trainer.accelerator in ("gpu", "cuda"):
        backbone.vae.to("cuda")
    data = prepare_captioned(
        splits, cfg.dataset, cfg.seed, backbone.size, backbone.tokenize, backbone.encode, backbone.lost
    )
    return Parts(backbone, data, lambda model: Diffusion(model, backbone, data, cfg))


def _save_merged(parts: Parts, model: Any, cfg: DictConfig, out: Path) -> None:
    model.unet.save_pretrained(str(out / "unet"))  # in the place of a pipeline's own
    if cfg.backbone.text_encoder:
        model.text_encoder.save_pretrained(str(out / "text_encoder"))


def _save_as_lora(naming: str, model: Any, out: Path) -> None:
    from foura.adapter import save_as_lora

    unet: Any = model.get_submodule("base_model.model.unet")
    unet.peft_config = model.peft_config  # the UNet by itself, as in diffusers
    save_as_lora(unet, out, naming=naming)


def _pretraining_loss(parts: Parts, model: Any, cfg: DictConfig) -> float:
    from foura.families.diffusion.pretraining import pretraining_batches

    return parts.task(model).mean_loss(pretraining_batches(parts))


def _pretrain(out: Path | None) -> None:
    from foura.bundled.pretrain_unet import STEPS, pretrain_unet
    from foura.bundled.unet import FOLDER

    pretrain_unet(out or FOLDER, steps=STEPS, seed=0)


FAMILY = Family(
    name="unet",
    sources=("letters", "imagefolder", "hf"),
    bundled=("letters",),
    formats={"captions": ("kernel", "loss")},
    causal=False,
    build=_build,
    save_merged=_save_merged,
    save_as_lora={"lora": partial(_save_as_lora, "diffusers"), "kohya": partial(_save_as_lora, "kohya")},
    pretraining_loss=_pretraining_loss,
    pretrain=_pretrain,
)
