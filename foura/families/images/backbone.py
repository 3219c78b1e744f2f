"""Image classifiers of timm: the bundled ViT, any timm name, a local timm folder, or a checkpoint file."""

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from omegaconf import DictConfig
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from foura.backbone import Backbone, choose_targets
from foura.bundled.vit import BUNDLED_VIT, INPUT_MEAN, INPUT_STD, WEIGHTS
from foura.errors import UserError, reason
from foura.families.model_files import check_parameters
from foura.families.timm_models import check_timm, left_unset, local_name
from foura.files import find, read_weights, regular, unfit

TARGETS = ("qkv", "attn.proj", "fc1", "fc2")
# Squeeze-and-excitation: gates on channels, of a few channels each, which see an image as one pixel. Their ranks would bound
# those of all other layers.
CHANNEL_GATES = (SEModule, EffectiveSEModule, SqueezeExcite)


@dataclass(frozen=True)
class ImageBackbone(Backbone):
    """A model from images (S, C, H, W) to logits (S, classes); its head is new.

    Attributes:
        image_mode: Pillow's mode of the images that it takes, "L" or "RGB".
        preprocess: from a Pillow image of that mode to a float tensor (C, H, W).
    """

    image_mode: str
    preprocess: Callable[[Image.Image], Tensor]


def build_vit(cfg: DictConfig, num_classes: int) -> ImageBackbone:
    """The backbone of `cfg` (the config group) with a new head for `num_classes`.

    Raises:
        UserError: an unknown name, weights that are not there or do not fit, or target modules that match nothing.
    """
    model: Any
    if cfg.name == "embedded":
        model, head, data = _bundled(cfg.pretrained, num_classes), "head", _bundled_data()
    else:
        model = _timm_model(cfg, num_classes)
        head = model.pretrained_cfg.get("classifier")
        data = resolve_model_data_config(model, args={"img_size": cfg.img_size} if cfg.img_size else None)
    model.requires_grad_(False)
    if not isinstance(head, str):
        raise UserError(
            f"backbone.name={cfg.name} has no single classifier layer (found {head!r}); choose another model."
        )
    channels = data["input_size"][0]
    if channels not in (1, 3):
        raise UserError(f"backbone.name={cfg.name} takes images of {channels} channels; choose a model of 1 or 3.")
    apart = [name for name, module in model.named_modules() if _apart(module, channels)]
    return ImageBackbone(
        model=model,
        targets=choose_targets(model, cfg.target_modules, TARGETS, head, blocks=True, convolutions=True, apart=apart),
        head=head,
        new=(head,),
        body="",
        image_mode="L" if channels == 1 else "RGB",
        preprocess=create_transform(**data, is_training=False),
    )


def _apart(module: nn.Module, channels: int) -> bool:
    """True for layers that are no targets by default: gates on channels, and what sees the image itself."""
    return isinstance(module, CHANNEL_GATES) or (isinstance(module, nn.Conv2d) and module.in_channels == channels)


def _bundled_data() -> dict[str, Any]:
    """The bundled ViT's preprocessing, in the form of timm's `resolve_model_data_config`."""
    size = BUNDLED_VIT["img_size"]
    data = {"input_size": (BUNDLED_VIT["in_chans"], size, size), "mean": INPUT_MEAN, "std": INPUT_STD}
    return {**data, "interpolation": "bilinear", "crop_pct": 1.0}


def _bundled(pretrained: bool | str, num_classes: int) -> nn.Module:
    model = VisionTransformer(**BUNDLED_VIT, num_classes=num_classes)
    if pretrained is False:
        return model
    path = WEIGHTS if pretrained is True else find(pretrained, "backbone.pretrained")
    if not path.exists():
        raise UserError(f"the weights of the bundled ViT are not at {path}; `foura pretrain` makes them.")
    state = {key: value for key, value in read_weights(path).items() if not key.startswith("head.")}
    wanted = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    wrong = unfit(state, wanted)
    if wrong:
        raise UserError(
            f"{path} does not hold the weights of the bundled ViT ({wrong}); `foura pretrain` remakes them."
        )
    model.load_state_dict(state, strict=False)
    return model


def _timm_model(cfg: DictConfig, num_classes: int) -> nn.Module:
    """A model by timm's own loading, so that heads and input channels are adapted as timm does it.

    Raises:
        UserError: no such model, or weights that cannot be loaded or are of another model.
    """
    name = _timm_name(cfg.name)
    check_timm(name, cfg)
    overlay = None
    if isinstance(cfg.pretrained, str):
        overlay = {"file": str(regular(find(cfg.pretrained, "backbone.pretrained")))}
    options: dict[str, Any] = {"pretrained_cfg_overlay": overlay, "num_classes": num_classes}
    try:
        with left_unset() as unset:
            if name.startswith("local-dir:") and cfg.pretrained is True:
                hollow = functools.partial(_created, name, cfg.img_size, pretrained=False, **options)
                check_parameters(hollow, Path(name.removeprefix("local-dir:")), cfg)
            model = _created(name, cfg.img_size, pretrained=cfg.pretrained is not False, **options)
    except UserError:
        raise
    except Exception as error:  # timm, and what it builds from a config.json, raise many kinds; all say what is wrong
        raise UserError(
            f"backbone.name={name}: the weights could not be loaded ({reason(error)}). Give a file with "
            "backbone.pretrained=PATH, a local folder with backbone.name=PATH, or backbone.pretrained=false."
        ) from error
    head = model.pretrained_cfg.get("classifier")
    missing = [key for key in unset if not key.startswith(f"{head}.") and not key.endswith("num_batches_tracked")]
    if cfg.pretrained is not False and missing:
        raise UserError(
            f"backbone.name={cfg.name}: the weights are of another model: {len(missing)} that this one has are missing, such "
            f"as {missing[0]}."
        )
    return model


def _timm_name(wanted: str) -> str:
    name = local_name(wanted)
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) or timm.is_model(name.split(".")[0]):
        return name
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UserError(f"backbone.name={name} is neither a timm model nor a folder here.{hint}")


def _created(name: str, img_size: int | None, **options: Any) -> Any:
    if img_size is None:
        return timm.create_model(name, **options)
    try:
        return timm.create_model(name, img_size=img_size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **options)  # a convolutional model takes any size, and no such argument
