"""Image backbones by timm: the embedded ViT, any timm name, a local timm folder, or a checkpoint file."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from omegaconf import DictConfig
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from foura.backbone import Backbone, choose_targets
from foura.bundled.vit import EMBEDDED_VIT, INPUT_MEAN, INPUT_STD, WEIGHTS
from foura.errors import UserError, reason
from foura.families.timm_models import left_unset
from foura.files import find, here, read_weights, regular, unfit

TARGETS = ("qkv", "attn.proj", "fc1", "fc2")


@dataclass(frozen=True)
class ImageBackbone(Backbone):
    """Maps images (S, C, H, W) to logits (S, classes); its head is new.

    Attributes:
        image_mode: Pillow's mode of the images it takes, "L" or "RGB".
        preprocess: a Pillow image of that mode to a float tensor (C, H, W).
    """

    image_mode: str
    preprocess: Callable[[Image.Image], Tensor]


def build_vit(cfg: DictConfig, num_classes: int) -> ImageBackbone:
    """The backbone of `cfg` (the config group) with a new head for `num_classes`.

    Raises:
        UserError: an unknown name, weights that are not there or do not fit, or target modules that match nothing.
    """
    embedded = cfg.name == "embedded"
    model: Any = _embedded(cfg.pretrained, num_classes) if embedded else _timm_model(cfg, num_classes)
    model.requires_grad_(False)
    head = model.pretrained_cfg.get("classifier") if not embedded else "head"
    if not isinstance(head, str):
        raise UserError(
            f"backbone.name={cfg.name} has no single classifier layer (found {head!r}); choose another model."
        )
    data = resolve_model_data_config(model, args={"img_size": cfg.img_size} if cfg.img_size else None)
    if embedded:
        size = EMBEDDED_VIT["img_size"]
        data = {"input_size": (EMBEDDED_VIT["in_chans"], size, size), "mean": INPUT_MEAN, "std": INPUT_STD}
        data |= {"interpolation": "bilinear", "crop_pct": 1.0}
    channels = data["input_size"][0]
    if channels not in (1, 3):
        raise UserError(f"backbone.name={cfg.name} takes images of {channels} channels; only 1 and 3 can be fed.")
    return ImageBackbone(
        model=model,
        targets=choose_targets(model, cfg.target_modules, TARGETS, head),
        head=head,
        new=(head,),
        body="",
        image_mode="L" if channels == 1 else "RGB",
        preprocess=create_transform(**data, is_training=False),
    )


def _embedded(pretrained: bool | str, num_classes: int) -> nn.Module:
    model = VisionTransformer(**EMBEDDED_VIT, num_classes=num_classes)
    if pretrained is False:
        return model
    path = WEIGHTS if pretrained is True else Path(pretrained)
    if here(str(path)) is None:
        raise UserError(f"the weights of the embedded ViT are not at {path}; `foura pretrain` makes them.")
    state = {key: value for key, value in read_weights(path).items() if not key.startswith("head.")}
    wanted = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    wrong = unfit(state, wanted)
    if wrong:
        raise UserError(
            f"{path} does not hold the weights of the embedded ViT ({wrong}); `foura pretrain` remakes them."
        )
    model.load_state_dict(state, strict=False)
    return model


def _timm_model(cfg: DictConfig, num_classes: int) -> nn.Module:
    """A model by timm's own loading, so that heads and input channels are adapted as timm does it."""
    name, pretrained, overlay = cfg.name, cfg.pretrained is not False, None
    folder = here(name)
    if folder is not None and folder.is_dir():
        name = f"local-dir:{folder}"
    elif not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"backbone.name={name} is neither a timm model nor a folder here.{hint}")
    if isinstance(cfg.pretrained, str):
        overlay = {"file": str(regular(find(cfg.pretrained, "backbone.pretrained")))}
    options: dict[str, Any] = {"pretrained": pretrained, "pretrained_cfg_overlay": overlay, "num_classes": num_classes}
    size = {"img_size": cfg.img_size} if cfg.img_size else {}
    try:
        with left_unset() as unset:
            try:
                model = timm.create_model(name, **options, **size)
            except TypeError as error:
                if not (size and "img_size" in str(error)):
                    raise
                model = timm.create_model(name, **options)  # convolutional models take any size, without saying so
    except Exception as error:  # timm, and what it makes of a config.json, raise many kinds; all say what is wrong
        raise UserError(
            f"backbone.name={name}: the weights could not be loaded ({reason(error)}). Give a file with "
            "backbone.pretrained=PATH, a local folder with backbone.name=PATH, or backbone.pretrained=false."
        ) from error
    described: Any = model.pretrained_cfg
    head = described.get("classifier")
    missing = [key for key in unset if not key.startswith(f"{head}.") and not key.endswith("num_batches_tracked")]
    if pretrained and missing:
        raise UserError(
            f"backbone.name={cfg.name}: the weights are of another model: {len(missing)} that this one has are missing, such "
            f"as {missing[0]}."
        )
    return model
