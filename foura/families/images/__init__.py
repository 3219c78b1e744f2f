"""Image classification with models of timm (`backbone=vit`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.families.family import Family, Parts, saved_outputs, untrained

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foura.backbone import Backbone


def _build(cfg: DictConfig) -> Parts:
    from foura.families.images.backbone import build_vit
    from foura.families.images.data import prepare
    from foura.families.images.sources import open_source
    from foura.families.images.task import Classification

    source = open_source(cfg.dataset)
    backbone = build_vit(cfg.backbone, len(source.classes))
    data = prepare(source, cfg.dataset, cfg.seed, backbone.image_mode, backbone.preprocess)
    return Parts(backbone, data, lambda model: Classification(model, data, cfg))


def _save_merged(backbone: Any, model: Any, cfg: DictConfig, out: Path) -> None:
    from foura.families.images.export import save_merged

    save_merged(model, cfg.backbone, out)


def _load_merged(backbone: Any, cfg: DictConfig, folder: Path) -> nn.Module:
    from foura.families.images.export import load_merged

    return load_merged(cfg.backbone, folder)


def _backbone(cfg: DictConfig, saved: Mapping[str, Any]) -> Backbone:
    from foura.families.images.backbone import build_vit

    return build_vit(cfg.backbone, saved_outputs(build_vit(untrained(cfg.backbone), 1), saved))


def _example(backbone: Any) -> dict[str, Tensor]:
    from foura.families.images.export import example

    return example(backbone)


def _pretraining_loss(parts: Parts, model: Any, cfg: DictConfig) -> float:
    from foura.families.images.pretraining import pretraining_loss

    return pretraining_loss(model)


def _pretrain(out: Path | None) -> None:
    from foura.bundled.pretrain_vit import EPOCHS, IMAGES, pretrain_vit
    from foura.bundled.vit import WEIGHTS

    pretrain_vit(out or WEIGHTS, images=IMAGES, epochs=EPOCHS, seed=0)


INFERENCE = """import timm
import torch
import foura  # makes the method known to PEFT
from peft import PeftModel

base = timm.create_model(BASE, pretrained=True, num_classes=CLASSES)
model = PeftModel.from_pretrained(base, ADAPTER).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(base), is_training=False)
with torch.no_grad():
    print(model(prepare(image)[None]).softmax(-1))  # image: Pillow's, of mode RGB
"""


FAMILY = Family(
    name="vit",
    sources=("digits", "imagefolder", "hf"),
    bundled=("digits",),
    formats={"classes": ("acc", "loss")},
    uses={
        "": ("dataset.classes", "dataset.eval_limit"),
        "own backbone": ("backbone.img_size",),
        "own data": ("dataset.path", "dataset.splits", "dataset.background", "dataset.unreadable"),
        "dataset=hf": ("dataset.config", "dataset.columns.image", "dataset.columns.label"),
    },
    bundled_model="bundled ViT",
    bundled_on="rendered letters",
    inference=INFERENCE,
    causal=False,
    build=_build,
    save_merged=_save_merged,
    load_merged=_load_merged,
    backbone=_backbone,
    example=_example,
    pretraining_loss=_pretraining_loss,
    pretrain=_pretrain,
)
