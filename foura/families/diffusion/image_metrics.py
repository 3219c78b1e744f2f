"""Metrics of generated images: near to held-out ones, diverse, not copies, and showing what their captions say."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from foura.analysis.images import copy_distance, diversity
from foura.errors import UserError, reason
from foura.families.diffusion.data import DiffusionData
from foura.families.diffusion.features import AT_ONCE, Clip, feature_space, letters_read

ALONE: Any = {"sync_on_compute": False}  # every process measures all images


class ImageMetrics:
    """Measures generated images against a run's data, in the feature space `evaluation.features`.

    frechet, kernel: Fréchet distance (arXiv 1706.08500) and kernel distance (arXiv 1801.01401) to the images of a held-out
    split; the kernel distance is unbiased for few images, the Fréchet distance is not: compare it at equal numbers only.
    diversity: between seeds of a prompt. copy_distance: to the nearest training image, in units of what held-out images
    have. legible, for the bundled letters: the share that the bundled ViT reads as the letter of the caption. lpips
    (diversity) and clip (alignment): where the user has the weights.

    Args:
        evaluation: the config group. source: `dataset.source`.

    Raises:
        UserError: a model that cannot be loaded; at once, so before anything is trained.
    """

    def __init__(self, evaluation: DictConfig, data: DiffusionData, source: str) -> None:
        self.data, self.reads = data, source == "letters"
        self.known: dict[str, Tensor] = {}  # features of the data, by split
        with torch.random.fork_rng(devices=[]):  # new models draw weights; the run's random numbers stay the same
            self.space = feature_space(evaluation.features)
            self.lpips = _lpips_metric() if evaluation.lpips else None
            self.clip = None if evaluation.clip is None else Clip(evaluation.clip).eval()

    def __call__(self, images: Tensor, captions: list[str], held_out: str, device: torch.device) -> dict[str, float]:
        """{metric: value} of generated images (n, 3, H, W) in 0..1 and their captions.

        Args:
            held_out: "validation" or "test". device: where features are computed.
        """
        for split in ("train", held_out):
            if split not in self.known:
                self.known[split] = self._features(self.data.images[split], device)
        features, training, other = self._features(images, device), self.known["train"], self.known[held_out]
        order = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        prompt = torch.tensor([order[caption] for caption in captions])
        values = {
            "frechet": _frechet(features, other),
            "kernel": _kernel(features, other),
            "diversity": diversity(features, prompt),
            "copy_distance": copy_distance(features, training, other),
        }
        if self.reads:
            values["legible"] = letters_read(images, captions)
        if self.lpips is not None:
            values["lpips"] = _lpips(self.lpips.to(device), images.to(device), prompt)
        if self.clip is not None:
            values["clip"] = self.clip.to(device)(images, captions)
        return values

    @torch.no_grad()
    def _features(self, images: Tensor, device: torch.device) -> Tensor:
        self.space.to(device)
        return torch.cat([self.space(part.to(device)).cpu() for part in images.split(AT_ONCE)])


def _frechet(features: Tensor, held_out: Tensor) -> float:
    """Fréchet distance of features (n, d) to those of held-out images (m, d)."""
    metric = FrechetInceptionDistance(_Given(features.shape[1]), normalize=True, **ALONE).set_dtype(torch.float64)
    metric.update(held_out.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def _kernel(features: Tensor, held_out: Tensor) -> float:
    """Kernel distance (unbiased) of features (n, d) to those of held-out images (m, d)."""
    size = min(len(features), len(held_out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # it draws subsets
        subsets: Any = {"subsets": 20, "subset_size": max(2, size // 2)}
        metric = KernelInceptionDistance(_Given(features.shape[1]), **subsets, **ALONE)
        metric.update(held_out, real=True)
        metric.update(features, real=False)
        return float(metric.compute()[0])


def _lpips(metric: Any, images: Tensor, prompt: Tensor) -> float:
    """Mean LPIPS between images (n, 3, H, W) of one prompt; prompt (n,): the number of each image's prompt."""
    large = nn.functional.interpolate(images, (64, 64)) if images.shape[-1] < 64 else images
    for one in prompt.unique():
        first, second = torch.combinations(torch.nonzero(prompt == one)[:, 0]).T
        metric.update(large[first], large[second])
    value = float(metric.compute())
    metric.reset()
    return value


def _lpips_metric() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity("alex", normalize=True, **ALONE)
    except Exception as error:  # no network, or a package that is missing
        raise UserError(
            "evaluation.lpips=true needs torchvision's AlexNet weights in torch's cache, and they cannot be loaded: "
            f"{reason(error)}"
        ) from error


class _Given(nn.Module):
    """Passes features through: torchmetrics wants an extractor that has `num_features`."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Any) -> Any:
        return features
