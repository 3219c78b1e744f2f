"""Image classification: cross-entropy on the logits of an adapted model."""

from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from foura.tasks.task import EVALUATIONS, Task


class Classification(Task):
    """Batches are (images (S, C, H, W), class indices (S,))."""

    metrics = MappingProxyType({"loss": -1, "acc": 1})
    headline = "acc"

    def __init__(self, model: nn.Module, num_classes: int, cfg: DictConfig) -> None:
        super().__init__(model, cfg)
        self.evaluations: Any = nn.ModuleDict({name: _metrics(num_classes) for name in (*EVALUATIONS, "test")})

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def evaluate(self, name: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self.model(images)
        losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        self.evaluations[name]["acc"].update(logits, labels)
        self.evaluations[name]["loss"].update(losses)

    def results(self, name: str) -> dict[str, float]:
        values = {key: float(value) for key, value in self.evaluations[name].compute().items()}
        self.evaluations[name].reset()
        return values


def _metrics(num_classes: int) -> MetricCollection:
    # nan_strategy: a NaN must reach `_refuse_nan` and not be left out of the mean
    return MetricCollection(
        {"loss": MeanMetric(nan_strategy="disable"), "acc": MulticlassAccuracy(num_classes, average="micro")},
        compute_groups=False,
    )
