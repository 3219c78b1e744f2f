"""Image classification: cross-entropy on the logits of an adapted model."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from foura.families.images.data import ImageData
from foura.families.task import EVALUATIONS, Task

EVALUATED_AT_ONCE = 256  # images


class Classification(Task):
    """Batches are (images (S, C, H, W), class indices (S,)).

    loss: cross-entropy, nats. acc: the share of images whose most likely class is right.
    """

    metrics = ("loss", "acc")

    def __init__(self, model: nn.Module, data: ImageData, cfg: DictConfig) -> None:
        super().__init__(model, cfg)
        num_classes = len(data.classes or ())
        self.evaluations: Any = nn.ModuleDict({name: _metrics(num_classes) for name in (*EVALUATIONS, "test")})

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def evaluate(self, name: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        logits = self.model(images)
        losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        self.evaluations[name]["acc"].update(logits, labels)
        self.evaluations[name]["loss"].update(losses)
        return {"acc": logits.argmax(1) == labels, "loss": losses}

    def final_measures(self, data: ImageData, folder: Path) -> dict[str, float]:
        """memorised/train: of the training items with a wrong label, the share that the model gives that very label.

        Only memorisation can do that; chance would be 1 / (classes - 1).
        """
        if data.noisy is None:
            return {}
        hits = []
        for images, labels in DataLoader(data.noisy, EVALUATED_AT_ONCE):
            hits.append(self.model(images.to(self.device)).argmax(1).cpu() == labels)
        return {"memorised/train": float(torch.cat(hits).float().mean())}

    def results(self, name: str) -> dict[str, float]:
        values = {key: float(value) for key, value in self.evaluations[name].compute().items()}
        self.evaluations[name].reset()
        return values


def _metrics(num_classes: int) -> MetricCollection:
    # nan_strategy: a NaN must not be left out of the mean: `Task` ends the run where it finds one
    return MetricCollection(
        {"loss": MeanMetric(nan_strategy="disable"), "acc": MulticlassAccuracy(num_classes, average="micro")},
        compute_groups=False,
    )
