"""What generated pictures are worth: near to held-out ones, diverse, no copies, and showing what was asked for."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from foura.analysis.pictures import copy_distance, diversity
from foura.datasets.captioned import DiffusionData
from foura.errors import UserError, reason
from foura.tasks.features import feature_space, letters_read

AT_ONCE = 64  # pictures
ALONE: Any = {"sync_on_compute": False}  # of several ranks, each judges all that was drawn


class Judge:
    """Measures drawn pictures against a run's data, in the feature space `evaluation.features`.

    frechet, kernel: distances to the pictures of the split `held_out` (kernel is unbiased at few pictures, frechet is not:
    compare it at equal numbers only). diversity: between seeds of a prompt. copy_distance: to the nearest training picture,
    in units of what held-out pictures have. legible, for the embedded letters: the share that our classifier reads as the
    letter asked for. lpips (diversity) and clip (alignment) where the user has the weights.
    """

    def __init__(
        self, evaluation: DictConfig, data: DiffusionData, source: str, device: torch.device, held_out: str
    ) -> None:
        self.evaluation, self.device, self.reads = evaluation, device, source == "letters"
        self.space = feature_space(evaluation.features).to(device)
        self.training, self.held_out = (self._features(data.pictures[name]) for name in ("train", held_out))

    def __call__(self, drawn: Tensor, captions: list[str]) -> dict[str, float]:
        """Measures of drawn pictures (n, 3, H, W) and their captions."""
        features = self._features(drawn)
        order = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        prompt = torch.tensor([order[caption] for caption in captions])
        measures = {
            "frechet": self._frechet(features),
            "kernel": self._kernel(features),
            "diversity": diversity(features, prompt),
            "copy_distance": copy_distance(features, self.training, self.held_out),
        }
        if self.reads:
            measures["legible"] = letters_read(drawn, captions)
        if self.evaluation.lpips:
            measures["lpips"] = self._lpips(drawn, prompt)
        if self.evaluation.clip is not None:
            measures["clip"] = self._clip(drawn, captions)
        return measures

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.space(part.to(self.device)).cpu() for part in pictures.split(AT_ONCE)])

    def _frechet(self, features: Tensor) -> float:
        metric = FrechetInceptionDistance(_Given(features.shape[1]), normalize=True, **ALONE).set_dtype(torch.float64)
        metric.update(self.held_out.double(), real=True)
        metric.update(features.double(), real=False)
        return float(metric.compute())

    def _kernel(self, features: Tensor) -> float:
        size = min(len(features), len(self.held_out))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # it draws subsets
            subsets: Any = {"subsets": 20, "subset_size": max(2, size // 2)}
            metric = KernelInceptionDistance(_Given(features.shape[1]), **subsets, **ALONE)
            metric.update(self.held_out, real=True)
            metric.update(features, real=False)
            return float(metric.compute()[0])

    def _lpips(self, drawn: Tensor, prompt: Tensor) -> float:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True, **ALONE).to(self.device)
        except Exception as error:  # no network, or a package that is missing
            raise UserError(
                f"evaluation.lpips=true needs torchvision's AlexNet weights in torch's cache, and they are not to be had: "
                f"{reason(error)}"
            ) from error
        for one in prompt.unique():
            first, second = torch.combinations(torch.nonzero(prompt == one)[:, 0]).T
            large = nn.functional.interpolate(drawn, (64, 64)) if drawn.shape[-1] < 64 else drawn
            metric.update(large[first].to(self.device), large[second].to(self.device))
        return float(metric.compute())

    def _clip(self, drawn: Tensor, captions: list[str]) -> float:
        from torchmetrics.multimodal.clip_score import CLIPScore

        try:
            metric = CLIPScore(self.evaluation.clip, **ALONE).to(self.device)
        except Exception as error:
            raise UserError(
                f"evaluation.clip={self.evaluation.clip}: no CLIP model could be loaded from there "
                f"({reason(error)}); a local directory works without a network."
            ) from error
        metric.update((drawn * 255).byte().to(self.device), captions)
        return float(metric.compute())


class _Given(nn.Module):
    """Features that are features already, in the form that torchmetrics wants of an extractor."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Any) -> Any:
        return features
