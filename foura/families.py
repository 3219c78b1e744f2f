"""The three families of runs: which backbone, data and task belong together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn

from foura.backbones.backbone import Backbone
from foura.config import data_format
from foura.tasks.task import Task


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        data: has train, train_eval, validation, test, sizes, fingerprint and collate (None for PyTorch's own).
        task: from the adapted model to its training.
    """

    backbone: Backbone
    data: Any
    task: Callable[[nn.Module], Task]


def build(cfg: DictConfig) -> Parts:
    """Data, backbone and task of a config.

    Raises:
        UserError: what in them cannot work.
    """
    return {"vit": _images, "llama_small": _language, "unet": _diffusion}[cfg.backbone.family](cfg)


def _images(cfg: DictConfig) -> Parts:
    from foura.backbones.vit import build_vit
    from foura.datasets.sources import open_source
    from foura.datasets.splits import prepare
    from foura.tasks.classification import Classification

    source = open_source(cfg.dataset)
    backbone = build_vit(cfg.backbone, len(source.classes))
    data = prepare(source, cfg.dataset, cfg.seed, backbone.image_mode, backbone.preprocess)
    return Parts(backbone, data, lambda model: Classification(model, len(data.classes), cfg))


def _language(cfg: DictConfig) -> Parts:
    from foura.backbones.llama import build_llama
    from foura.datasets.text import open_text
    from foura.datasets.tokens import prepare_text
    from foura.tasks.language import Language

    source = open_text(cfg.dataset, data_format(cfg))  # first: bad data is said before a large model is loaded
    backbone = build_llama(cfg.backbone)
    data = prepare_text(source, cfg.dataset, cfg.seed, backbone.tokenizer, backbone.max_tokens)
    return Parts(backbone, data, lambda model: Language(model, data.judged, cfg, backbone.tokenizer))


def _diffusion(cfg: DictConfig) -> Parts:
    from foura.backbones.unet import build_unet
    from foura.datasets.captioned import open_captioned, prepare_captioned
    from foura.tasks.diffusion import Diffusion

    splits = open_captioned(cfg.dataset)
    backbone = build_unet(cfg.backbone)
    if backbone.vae is not None and cfg.trainer.accelerator in ("gpu", "cuda"):
        backbone.vae.to("cuda")
    data = prepare_captioned(splits, cfg.dataset, cfg.seed, backbone.size, backbone.tokenize, backbone.encode)
    return Parts(backbone, data, lambda model: Diffusion(model, backbone, data, cfg))
