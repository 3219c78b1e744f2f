"""What pictures are compared by: colours by place, the embedded ViT, any timm model; and CLIP, with their captions."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from foura.errors import UserError, reason
from foura.files import here, read_weights

AT_ONCE = 64  # pictures


def feature_space(name: str) -> nn.Module:
    """A module from pictures (n, 3, H, W) in 0..1 to features (n, d).

    Args:
        name: "colours" (means of a 4 x 4 grid, 48 numbers), "glyphs" (the embedded ViT, 128 numbers: shapes, no colours),
            or a timm model's name or local folder, with its pretrained weights.
    """
    if name == "colours":
        return Colours()
    if name == "glyphs":
        return Glyphs().eval().requires_grad_(False)
    return Timm(name).eval().requires_grad_(False)


class Colours(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(pictures, 4).flatten(1)


class Glyphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = _embedded_vit(classes=0)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.vit(_as_glyphs(pictures))


class Timm(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        from foura.families.timm_models import left_unset

        folder = here(name)
        place = f"local-dir:{folder}" if folder is not None and folder.is_dir() else name
        try:
            with left_unset() as unset:
                self.model = timm.create_model(place, pretrained=True, num_classes=0)
            data = timm.data.resolve_model_data_config(self.model)
            self.size = tuple(data["input_size"][1:])
            self.register_buffer("mean", torch.tensor(data["mean"]).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor(data["std"]).view(1, -1, 1, 1))
            with torch.no_grad():
                found = self.eval()(torch.zeros(1, 3, 8, 8))
            if found.dim() != 2 or not found.isfinite().all():
                raise ValueError(f"of a picture it makes {tuple(found.shape)}, not finite numbers (1, d)")
        except Exception as error:  # timm, and what it makes of a config.json, raise many kinds
            raise UserError(
                f"evaluation.features={name}: no such feature space ({reason(error)}). Choose colours, glyphs, a timm model "
                "or a local timm folder."
            ) from error
        missing = [key for key in unset if not key.endswith("num_batches_tracked")]
        if missing:
            raise UserError(f"evaluation.features={name}: weights are missing from it, such as {missing[0]}.")

    def forward(self, pictures: Tensor) -> Tensor:
        resized = functional.interpolate(pictures, self.size, mode="bilinear", antialias=True)
        return self.model((resized - self.mean) / self.std)


class Clip(nn.Module):
    """CLIPScore (Hessel et al., 2021) of pictures and their captions: 100 times the cosine of their features, a mean.

    torchmetrics' own takes few models by name, runs code that comes with some of them, and does not go with this
    transformers.

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
    def forward(self, pictures: Tensor, captions: list[str]) -> float:
        """The score, 0 to 100, of pictures (n, 3, H, W) in 0..1 and their n captions."""
        total = 0.0
        for start in range(0, len(captions), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            images = list((pictures[some] * 255).byte().cpu())
            given = self.processor(
                text=captions[some], images=images, padding=True, truncation=True, return_tensors="pt"
            )
            found = self.model(**given.to(self.model.device))
            total += float((found.image_embeds * found.text_embeds).sum())  # both of length 1
        return max(0.0, 100 * total / len(captions))


@torch.no_grad()
def letters_read(pictures: Tensor, captions: list[str]) -> float:
    """The share of pictures that the embedded ViT reads as the letter of their caption, capital or small.

    It was pretrained on the same fonts, in black and white. Of real letters of `datasets.letters` it reads 99 % (plain) and
    92 % (fire).
    """
    from foura.bundled.glyphs import GLYPH_CLASSES

    scores = _embedded_vit(classes=len(GLYPH_CLASSES)).eval()(_as_glyphs(pictures))
    other = [not any(c.isascii() and c.isalpha() for c in characters) for characters in GLYPH_CLASSES]
    read = scores.masked_fill(torch.tensor(other), -torch.inf).argmax(-1).tolist()
    wanted = [caption[-1].lower() for caption in captions]
    return sum(letter in GLYPH_CLASSES[c].lower() for c, letter in zip(read, wanted, strict=True)) / len(wanted)


def _embedded_vit(classes: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    from foura.bundled.vit import EMBEDDED_VIT, WEIGHTS

    vit = VisionTransformer(**EMBEDDED_VIT, num_classes=classes)
    state = {
        key: value.float() for key, value in read_weights(WEIGHTS).items() if classes or not key.startswith("head.")
    }
    vit.load_state_dict(state)
    return vit


def _as_glyphs(pictures: Tensor) -> Tensor:
    """Pictures as the embedded ViT knows letters: ink on paper (the colour of the upper and lower edge), filling the square."""
    from foura.bundled.vit import EMBEDDED_VIT, INPUT_MEAN, INPUT_STD

    edge = torch.cat([pictures[..., 0, :], pictures[..., -1, :]], -1)
    paper = edge.median(-1, keepdim=True).values.unsqueeze(-1)
    ink = (pictures - paper).norm(dim=1, keepdim=True)
    ink = ink / ink.amax((-1, -2), keepdim=True).clamp_min(1e-3)
    margin, size = pictures.shape[-1] // 8, EMBEDDED_VIT["img_size"]
    ink = ink[..., margin : ink.shape[-2] - margin, margin : ink.shape[-1] - margin]
    coarse = functional.interpolate(ink, (size // 2, size // 2), mode="bilinear", antialias=True)
    return (functional.interpolate(coarse, (size, size), mode="bilinear") - INPUT_MEAN[0]) / INPUT_STD[0]
