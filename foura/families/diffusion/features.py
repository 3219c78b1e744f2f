"""Features by which images are compared: colours by place, the bundled ViT, any timm model; and CLIP, with captions."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from foura.errors import UserError, reason
from foura.families.model_files import check_model
from foura.families.timm_models import check_timm, left_unset, local_name
from foura.files import here, read_weights

AT_ONCE = 64  # images


def feature_space(name: str) -> nn.Module:
    """A module from images (n, 3, H, W) in 0..1 to features (n, d).

    Args:
        name: "colours" (means of a 4 x 4 grid, 48 numbers), "glyphs" (the bundled ViT, 128 numbers: shapes, no colours),
            or a timm model's name or local folder, with its pretrained weights.

    Raises:
        UserError: it is none of these, or weights are missing.
    """
    if name == "colours":
        return Colours()
    if name == "glyphs":
        return Glyphs().eval().requires_grad_(False)
    return Timm(name).eval().requires_grad_(False)


class Colours(nn.Module):
    """Mean colours of a 4 x 4 grid, (n, 48)."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(images, 4).flatten(1)


class Glyphs(nn.Module):
    """Features of the bundled ViT, (n, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = _bundled_vit(classes=0)

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(_as_glyphs(images))


class Timm(nn.Module):
    """Features of a timm model, (n, d).

    Raises:
        UserError: no such model, or weights are missing from it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        check_timm(name, None)
        try:
            with left_unset() as unset:
                self.model = timm.create_model(local_name(name), pretrained=True, num_classes=0)
            data = timm.data.resolve_model_data_config(self.model)
            self.size = tuple(data["input_size"][1:])
            self.register_buffer("mean", torch.tensor(data["mean"]).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor(data["std"]).view(1, -1, 1, 1))
            with torch.no_grad():
                found = self.eval()(torch.zeros(1, 3, 8, 8))
            if found.dim() != 2 or not found.isfinite().all():
                raise ValueError(f"for one image it returns {tuple(found.shape)}, not finite numbers (1, d)")
        except Exception as error:  # timm, and what it builds from a config.json, raise many kinds
            raise UserError(
                f"evaluation.features={name}: no such feature space ({reason(error)}). Choose colours, glyphs, a timm model "
                "or a local timm folder."
            ) from error
        missing = [key for key in unset if not key.endswith("num_batches_tracked")]
        if missing:
            raise UserError(f"evaluation.features={name}: weights are missing from it, such as {missing[0]}.")

    def forward(self, images: Tensor) -> Tensor:
        resized = functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        return self.model((resized - self.mean) / self.std)


class Clip(nn.Module):
    """CLIPScore (Hessel et al., arXiv 2104.08718) of images and their captions: 100 times the cosine of their features, a mean.

    The one of torchmetrics takes few models by name, runs code that comes with some of them, and does not support this
    version of transformers.

    Args:
        name: hub id or local folder of a CLIP model in safetensors.

    Raises:
        UserError: none can be loaded from there, or weights are missing from it.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        import transformers

        folder, clip = here(name), cast(Any, transformers.CLIPModel)
        place = name if folder is None else str(folder)
        check_model(place, None)
        try:
            self.model, found = clip.from_pretrained(place, use_safetensors=True, output_loading_info=True)
            self.processor = transformers.CLIPProcessor.from_pretrained(place, trust_remote_code=False)
            missing = found["missing_keys"]
            self(torch.zeros(1, 3, 8, 8), ["a"])
        except Exception as error:  # transformers and the hub raise many kinds
            raise UserError(
                f"evaluation.clip={name}: no CLIP model could be loaded from there ({reason(error)}); a local directory works "
                "without a network."
            ) from error
        if missing:
            raise UserError(f"evaluation.clip={name}: weights are missing from it, such as {min(missing)}.")

    @torch.no_grad()
    def forward(self, images: Tensor, captions: list[str]) -> float:
        """The score, 0 to 100, of images (n, 3, H, W) in 0..1 and their n captions."""
        total = 0.0
        for start in range(0, len(captions), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            pixels = list((images[part] * 255).byte().cpu())
            given = self.processor(
                text=captions[part], images=pixels, padding=True, truncation=True, return_tensors="pt"
            )
            found = self.model(**given.to(self.model.device))
            total += float((found.image_embeds * found.text_embeds).sum())  # both have length 1
        return max(0.0, 100 * total / len(captions))


@torch.no_grad()
def letters_read(images: Tensor, captions: list[str]) -> float:
    """The share of images that the bundled ViT reads as the letter of their caption, capital or small.

    The ViT was pretrained on the same fonts, in black and white. Of the letters of `bundled.letters` it reads 99 % (plain)
    and 92 % (fire).
    """
    from foura.bundled.glyphs import GLYPH_CLASSES

    scores = _bundled_vit(classes=len(GLYPH_CLASSES)).eval()(_as_glyphs(images))
    other = [not any(c.isascii() and c.isalpha() for c in characters) for characters in GLYPH_CLASSES]
    read = scores.masked_fill(torch.tensor(other), -torch.inf).argmax(-1).tolist()
    wanted = [caption[-1].lower() for caption in captions]
    return sum(letter in GLYPH_CLASSES[c].lower() for c, letter in zip(read, wanted, strict=True)) / len(wanted)


def _bundled_vit(classes: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    from foura.bundled.vit import BUNDLED_VIT, WEIGHTS

    vit = VisionTransformer(**BUNDLED_VIT, num_classes=classes)
    weights = read_weights(WEIGHTS)
    vit.load_state_dict(
        {key: value.float() for key, value in weights.items() if classes or not key.startswith("head.")}
    )
    return vit


def _as_glyphs(images: Tensor) -> Tensor:
    """Images as in the bundled ViT's pretraining: ink on paper (the colour of the upper and lower edge), filling the square."""
    from foura.bundled.vit import BUNDLED_VIT, INPUT_MEAN, INPUT_STD

    edge = torch.cat([images[..., 0, :], images[..., -1, :]], -1)
    paper = edge.median(-1, keepdim=True).values.unsqueeze(-1)
    ink = (images - paper).norm(dim=1, keepdim=True)
    ink = ink / ink.amax((-1, -2), keepdim=True).clamp_min(1e-3)
    margin, size = images.shape[-1] // 8, BUNDLED_VIT["img_size"]
    ink = ink[..., margin : ink.shape[-2] - margin, margin : ink.shape[-1] - margin]
    coarse = functional.interpolate(ink, (size // 2, size // 2), mode="bilinear", antialias=True)
    return (functional.interpolate(coarse, (size, size), mode="bilinear") - INPUT_MEAN[0]) / INPUT_STD[0]
