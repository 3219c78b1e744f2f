"""Image classification as a LightningModule: the loss, the metrics, and one evaluation for train and validation alike."""

from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from foura.adapter import param_groups
from foura.attach import after_step, regularisation
from foura.errors import Diverged

LOOK_EVERY = 50  # steps between looks at the loss on a GPU
EVALUATIONS = ("train_eval", "val")  # the order of the validation dataloaders


class Classification(LightningModule):
    """Cross-entropy on the logits of an adapted model.

    After each epoch `history` gains a row {"epoch", "train/loss", "train_eval/loss", "train_eval/acc", "val/loss",
    "val/acc", "gap/loss", "gap/acc"}; gaps are signed so that larger means more overfitting.
    """

    def __init__(self, model: nn.Module, num_classes: int, optimizer: DictConfig) -> None:
        super().__init__()
        self.model = model
        self.optimizer_config = optimizer
        self.history: list[dict[str, float]] = []
        self.tested: dict[str, float] = {}
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.evaluations: Any = nn.ModuleDict({name: _metrics(num_classes) for name in (*EVALUATIONS, "test")})

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.train_loss.update(loss.detach())
        # a look at the value makes a GPU wait for it, so there it is taken now and then
        if loss.device.type == "cpu" or batch_idx % LOOK_EVERY == 0:
            self._refuse_nan(loss, "training")
        extra = regularisation(self.model)
        return loss if extra is None else loss + extra

    def on_train_epoch_start(self) -> None:
        # frozen batch norms must not go on averaging: the backbone would change behind the adapter
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
                parameter.requires_grad for parameter in module.parameters()
            ):
                module.eval()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        after_step(self.model, self.trainer.global_step)  # the gradients of the step are still there

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(EVALUATIONS[dataloader_idx], batch)

    def on_validation_epoch_end(self) -> None:
        row: dict[str, float] = {"epoch": float(self.current_epoch)}
        if self.trainer.state.fn == "fit":
            row["train/loss"] = float(self.train_loss.compute())
            self.train_loss.reset()
        for name in EVALUATIONS:
            row |= self._results(name)
        row["gap/loss"] = row["val/loss"] - row["train_eval/loss"]
        row["gap/acc"] = row["train_eval/acc"] - row["val/acc"]
        for name in EVALUATIONS:
            self._refuse_nan(torch.tensor(row[f"{name}/loss"]), name)
        self.history.append(row)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        self.tested = self._results("test")

    def configure_optimizers(self) -> Any:
        cfg = self.optimizer_config
        groups = param_groups(self.model, lr=cfg.lr, gate_lr=cfg.gate_lr)
        optimizer = torch.optim.AdamW(groups, weight_decay=cfg.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = min(total - 1, round(cfg.warmup * total))
        schedules: list[torch.optim.lr_scheduler.LRScheduler] = []
        if warmup > 0:
            schedules.append(
                torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
            )
        if cfg.schedule == "cosine":
            schedules.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, total - warmup)))
        else:
            schedules.append(torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
        schedule = (
            torch.optim.lr_scheduler.SequentialLR(optimizer, schedules, milestones=[warmup]) if warmup else schedules[0]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _evaluate(self, name: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self.model(images)
        losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        self.evaluations[name]["acc"].update(logits, labels)
        self.evaluations[name]["loss"].update(losses)

    def _results(self, name: str) -> dict[str, float]:
        values = {f"{name}/{key}": float(value) for key, value in self.evaluations[name].compute().items()}
        self.evaluations[name].reset()
        return values

    def _refuse_nan(self, loss: Tensor, where: str) -> None:
        if not torch.isfinite(loss):
            raise Diverged(
                f"the {where} loss became {float(loss)} in epoch {self.current_epoch}, step {self.trainer.global_step}; "
                f"a lower optimizer.lr (now {self.optimizer_config.lr:g}) or trainer.gradient_clip_val=1.0 may help."
            )


def _metrics(num_classes: int) -> MetricCollection:
    # nan_strategy: a NaN must reach `_refuse_nan` and not be left out of the mean
    return MetricCollection(
        {"loss": MeanMetric(nan_strategy="disable"), "acc": MulticlassAccuracy(num_classes, average="micro")},
        compute_groups=False,
    )
