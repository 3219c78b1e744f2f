"""What generated pictures are worth: near to held-out ones, diverse, no copies, and showing what was asked for."""

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

ALONE: Any = {"sync_on_compute": False}  # of several ranks, each judges all that was drawn


class Judge:
    """Measures drawn pictures against a run's data, in the feature space `evaluation.features`.

    frechet, kernel: distances to the pictures of the split `held_out` (kernel is unbiased at few pictures, frechet is not:
    compare it at equal numbers only). diversity: between seeds of a prompt. copy_distance: to the nearest training picture,
    in units of what held-out pictures have. legible, for the embedded letters: the share that our classifier reads as the
    letter asked for. lpips (diversity) and clip (alignment) where the user has the weights.

    Raises:
        UserError: when it is made, so before anything is trained: a model that cannot be loaded.
    """

    def __init__(self, evaluation: DictConfig, data: DiffusionData, source: str) -> None:
        self.data, self.reads = data, source == "letters"
        self.seen: dict[str, Tensor] = {}  # features of the data, by split
        with torch.random.fork_rng(devices=[]):  # new models draw weights; a run's own chances stay what they are
            self.space = feature_space(evaluation.features)
            self.lpips = _lpips_metric() if evaluation.lpips else None
            self.clip = None if evaluation.clip is None else Clip(evaluation.clip).eval()

    def __call__(self, drawn: Tensor, captions: list[str], held_out: str, device: torch.device) -> dict[str, float]:
        """Measures of drawn pictures (n, 3, H, W) and their captions.

        Args:
            held_out: "validation" or "test". device: where features are computed.
        """
        for split in ("train", held_out):
            if split not in self.seen:
                self.seen[split] = self._features(self.data.images[split], device)
        features, training, other = self._features(drawn, device), self.seen["train"], self.seen[held_out]
        order = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        prompt = torch.tensor([order[caption] for caption in captions])
        measures = {
            "frechet": _frechet(features, other),
            "kernel": _kernel(features, other),
            "diversity": diversity(features, prompt),
            "copy_distance": copy_distance(features, training, other),
        }
        if self.reads:
            measures["legible"] = letters_read(drawn, captions)
        if self.lpips is not None:
            measures["lpips"] = _lpips(self.lpips.to(device), drawn.to(device), prompt)
        if self.clip is not None:
            measures["clip"] = self.clip.to(device)(drawn, captions)
        return measures

    @torch.no_grad()
    def _features(self, pictures: Tensor, device: torch.device) -> Tensor:
        self.space.to(device)
        return torch.cat([self.space(part.to(device)).cpu() for part in pictures.split(AT_ONCE)])


def _frechet(features: Tensor, held_out: Tensor) -> float:
    """Fréchet distance of features (n, d) to those of held-out pictures (m, d)."""
    metric = FrechetInceptionDistance(_Given(features.shape[1]), normalize=True, **ALONE).set_dtype(torch.float64)
    metric.update(held_out.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def _kernel(features: Tensor, held_out: Tensor) -> float:
    """Kernel distance (unbiased) of features (n, d) to those of held-out pictures (m, d)."""
    size = min(len(features), len(held_out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # it draws subsets
        subsets: Any = {"subsets": 20, "subset_size": max(2, size // 2)}
        metric = KernelInceptionDistance(_Given(features.shape[1]), **subsets, **ALONE)
        metric.update(held_out, real=True)
        metric.update(features, real=False)
        return float(metric.compute()[0])


def _lpips(metric: Any, drawn: Tensor, prompt: Tensor) -> float:
    """Mean LPIPS between pictures (n, 3, H, W) of one prompt; prompt: the number of each picture's, (n,)."""
    large = nn.functional.interpolate(drawn, (64, 64)) if drawn.shape[-1] < 64 else drawn
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
            f"evaluation.lpips=true needs torchvision's AlexNet weights in torch's cache, and they are not to be had: "
            f"{reason(error)}"
        ) from error


class _Given(nn.Module):
    """Features that are features already, in the form that torchmetrics wants of an extractor."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Any) -> Any:
        return features
