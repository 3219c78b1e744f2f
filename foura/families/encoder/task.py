"""Classification and regression of texts by an encoder's head, with GLUE's metrics."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef

from foura.families.encoder.data import SequenceData
from foura.families.task import EVALUATIONS, Task

AT_ONCE = 64  # texts


class SequenceTask(Task):
    """Batches are those of `encoder.data.collate`.

    Classification: loss is cross-entropy (nats), acc accuracy, f1 that of class 1 of two, or the mean over more classes,
    mcc Matthews' correlation. Regression: loss is the mean squared error, pearson and spearman correlations. A constant
    prediction has no correlation and counts as 0.
    """

    def __init__(self, model: nn.Module, data: SequenceData, cfg: DictConfig) -> None:
        super().__init__(model, cfg)
        self.classes = None if data.classes is None else len(data.classes)
        made = {name: _metrics(self.classes) for name in (*EVALUATIONS, "test")}
        self.metrics = tuple(str(key) for key in made["test"])
        self.evaluations: Any = nn.ModuleDict(made)

    def inputs(self, batch: Any) -> dict[str, Tensor]:
        return {key: value for key, value in batch.items() if key != "labels"}

    def terms(self, batch: Any) -> int:
        return len(batch["labels"])

    def loss(self, batch: Any) -> Tensor:
        return self._losses(self._scores(batch), batch["labels"]).mean()

    def evaluate(self, name: str, batch: Any) -> dict[str, Tensor]:
        scores, labels = self._scores(batch), batch["labels"]
        losses, predicted = self._losses(scores, labels), scores.argmax(-1) if self.classes else scores
        for key, metric in self.evaluations[name].items():
            if key == "loss":
                metric.update(losses)
            else:
                metric.update(predicted, labels)
        return {"loss": losses, **({"acc": predicted == labels} if self.classes else {})}

    def results(self, name: str) -> dict[str, float]:
        values = {key: metric.compute() for key, metric in self.evaluations[name].items()}
        self.evaluations[name].reset()
        # a NaN of the loss has to be seen, one of a correlation is a constant prediction
        return {key: float(value if key == "loss" else value.nan_to_num(0.0)) for key, value in values.items()}

    def final_measures(self, data: SequenceData, folder: Path) -> dict[str, float]:
        """memorised/train: the share of the training items with a wrong label that the model gives that very label."""
        if not data.noisy:
            return {}
        right = []
        for start in range(0, len(data.noisy), AT_ONCE):
            batch = {
                key: value.to(self.device) for key, value in data.collate(data.noisy[start : start + AT_ONCE]).items()
            }
            right.append(self._scores(batch).argmax(-1) == batch["labels"])
        return {"memorised/train": float(torch.cat(right).float().mean())}

    def _scores(self, batch: Any) -> Tensor:
        """Logits (S, classes), or predictions (S,) for regression, in float32 or better."""
        logits: Tensor = self.model(**self.inputs(batch)).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.classes else logits.squeeze(-1)

    def _losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.classes:
            return functional.cross_entropy(scores, labels, reduction="none")
        return (scores - labels.to(scores.dtype)).square()


def _metrics(classes: int | None) -> MetricCollection:
    # nan_strategy: a NaN must reach the check for it and not be left out of the mean
    metrics: dict[str, Any] = {"loss": MeanMetric(nan_strategy="disable")}
    if classes is None:
        metrics |= {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}
    else:
        f1 = BinaryF1Score() if classes == 2 else MulticlassF1Score(classes, average="macro")
        metrics |= {"acc": MulticlassAccuracy(classes, average="micro"), "f1": f1}
        metrics |= {"mcc": _Matthews(classes)}
    return MetricCollection(metrics, compute_groups=False)


class _Matthews(MulticlassMatthewsCorrCoef):
    """0 for a constant prediction, as scikit-learn and GLUE have it; torchmetrics gives anything from -1 to 0.58 and more."""

    def compute(self) -> Tensor:
        constant = (self.confmat.sum(0) > 0).sum() < 2
        return torch.zeros((), device=self.confmat.device) if constant else super().compute()
