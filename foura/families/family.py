"""The three families of runs: which backbone, data and task belong together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn

from foura.backbone import Backbone
from foura.config import data_format
from foura.families.task import Task


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
    from foura.families.images.backbone import build_vit
    from foura.families.images.data import prepare
    from foura.families.images.sources import open_source
    from foura.families.images.task import Classification

    source = open_source(cfg.dataset)
    backbone = build_vit(cfg.backbone, len(source.classes))
    data = prepare(source, cfg.dataset, cfg.seed, backbone.image_mode, backbone.preprocess)
    return Parts(backbone, data, lambda model: Classification(model, len(data.classes), cfg))


def _language(cfg: DictConfig) -> Parts:
    from foura.families.language.backbone import build_llama
    from foura.families.language.data import prepare_text
    from foura.families.language.task import Language
    from foura.families.language.text import open_text

    source = open_text(cfg.dataset, data_format(cfg))  # first: bad data is said before a large model is loaded
    backbone = build_llama(cfg.backbone)
    data = prepare_text(source, cfg.dataset, cfg.seed, backbone.tokenizer, backbone.max_tokens)
    return Parts(backbone, data, lambda model: Language(model, data.judged, cfg, backbone.tokenizer))


def _diffusion(cfg: DictConfig) -> Parts:
    from foura.families.diffusion.backbone import build_unet
    from foura.families.diffusion.data import open_captioned, prepare_captioned
    from foura.families.diffusion.task import Diffusion

    splits = open_captioned(cfg.dataset)
    backbone = build_unet(cfg.backbone)
    if backbone.vae is not None and cfg.trainer.accelerator in ("gpu", "cuda"):
        backbone.vae.to("cuda")
    data = prepare_captioned(splits, cfg.dataset, cfg.seed, backbone.size, backbone.tokenize, backbone.encode)
    return Parts(backbone, data, lambda model: Diffusion(model, backbone, data, cfg))
