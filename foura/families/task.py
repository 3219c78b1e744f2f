"""The base of all tasks: one deterministic evaluation of training and validation data, the optimizer, the check for NaN."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torchmetrics import MeanMetric

from foura import distributed
from foura.adapter import param_groups
from foura.errors import Diverged
from foura.methods import method_of
from foura.methods.state import adapter_parameters
from foura.metrics import METRICS

CHECK_EVERY = 50  # steps between checks of the loss on a GPU
EVALUATIONS = ("train_eval", "val")  # the order of the validation dataloaders


class Task(LightningModule):
    """The training of an adapted model.

    A task of a family implements `loss`, `evaluate` and `results`, and overrides what else differs.

    Attributes:
        metrics: keys of `foura.metrics` that `evaluate` measures and that have a gap; "loss" is always among them.
        history: a row per epoch: {"epoch", "train/loss", "train_eval/<m>", "val/<m>", "gap/<m>", …} with <m> the keys in
            `metrics`; a gap is positive where validation is worse.
        tested: {"test/<m>": value}, and the `final_measures`. test_items: {<m>: values of the test items, batch by batch}.
    """

    metrics: tuple[str, ...]

    def __init__(self, model: nn.Module, cfg: DictConfig) -> None:
        super().__init__()
        self.model = model
        self.method, self.adapter_config, self.optimizer_config = method_of(cfg), cfg.adapter, cfg.optimizer
        self.compiles: bool = cfg.backbone.compile
        self.history: list[dict[str, float]] = []
        self.tested: dict[str, float] = {}
        self.test_items: dict[str, list[Tensor]] = {}
        self.train_loss = MeanMetric(
            nan_strategy="disable", sync_on_compute=False
        )  # the value is the same in every process
        # where processes share a training batch: the rows of it that this one has, and how many the batch has
        self.rows: list[int] | None = None
        self.batch_size = 0
        self.before: dict[
            str, Tensor
        ] = {}  # {name: value in the backbone} of parameters that training or the adapter's start changes
        self.steps = 1  # of the optimizer, in the whole run
        self.generators: list[torch.Generator] = []  # further ones that training uses, beside PyTorch's own
        self.strict_loading = False  # checkpoints do not hold the frozen weights

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch, a scalar."""

    @abstractmethod
    def evaluate(self, name: str, batch: Any) -> dict[str, Tensor] | None:
        """Add a batch to the evaluation `name` ("train_eval", "val" or "test").

        Returns:
            {metric: its value for each item (S,)} of the metrics that are plain means over items, or None.
        """

    @abstractmethod
    def results(self, name: str) -> dict[str, float]:
        """{metric: value} of an evaluation, which is reset."""

    def mean_loss(self, batches: Iterable[Any]) -> float:
        """The loss over batches, evaluated as test data is."""
        for batch in batches:
            self.evaluate("test", batch)
        return self.results("test")["loss"]

    def terms(self, batch: Any) -> Any:
        """The number of terms whose mean is the loss of a batch."""
        return len(batch[0])

    def inputs(self, batch: Any) -> Any:
        """The model's input in a batch: a tensor, or a mapping of keyword arguments."""
        return batch[0]

    def final_measures(self, data: Any, folder: Path) -> dict[str, float]:
        """Further metrics of the selected epoch, measured once; images, tables and texts are written to `folder`."""
        return {}

    def epoch_images(self, folder: Path) -> list[Path]:
        """Images generated after this epoch, written to `folder`."""
        return []

    def epoch_measures(self) -> dict[str, float]:
        """Further metrics of this epoch, beside the evaluation."""
        return {}

    def configure_model(self) -> None:
        """For trainer=fsdp: shard the weights block by block, so that only one block at a time is gathered."""
        if self.device_mesh is None or isinstance(self.model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in _blocks(self.model):
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        if hasattr(self.model, "generate"):
            register_fsdp_forward_method(self.model, "generate")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if distributed.world_size() > 1:
            loss, value = self._shared_loss(batch, batch_idx)
        else:
            loss = self.loss(batch)
            value = loss.detach()
        self.train_loss.update(value)
        # reading the value makes a GPU wait for it, so there it is checked now and then
        if loss.device.type == "cpu" or batch_idx % CHECK_EVERY == 0:
            self._refuse_nan(value, "training")
        extra = self.method.loss(self.model)
        return loss if extra is None else loss + extra

    def _shared_loss(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """(a loss whose gradient, averaged over processes, is that of the whole batch; the loss of the whole batch)."""
        dataloader: Any = self.trainer.train_dataloader
        self.batch_size = dataloader.batch_sampler.size(batch_idx)
        share = list(range(self.batch_size))[distributed.rank() :: distributed.world_size()]
        self.rows = share or [0]
        loss = self.loss(batch)
        self.rows = None
        terms = self.terms(batch) if share else 0
        sums = torch.stack([torch.as_tensor(terms, device=loss.device).double(), terms * loss.detach().double()])
        torch.distributed.all_reduce(sums)
        whole, value = sums[0], sums[1] / sums[0]
        return loss * (terms * distributed.world_size() / whole).to(loss.dtype), value.to(loss.dtype)

    def on_train_start(self) -> None:
        self._keep_averages()  # Lightning does not start an epoch that is resumed within

    def on_train_epoch_start(self) -> None:
        self._keep_averages()

    def _keep_averages(self) -> None:
        # frozen batch norms must not update their averages: the backbone would change behind the adapter
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
                parameter.requires_grad for parameter in module.parameters()
            ):
                module.eval()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        # before the gradients are cleared, and before a checkpoint is written
        lr = float(optimizer.param_groups[0]["lr"])
        self.method.after_step(self.model, self.trainer.global_step + 1, self.adapter_config, lr)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(EVALUATIONS[dataloader_idx], batch)

    def on_validation_epoch_end(self) -> None:
        row: dict[str, float] = {"epoch": float(self.current_epoch)}
        if self.trainer.state.fn == "fit":
            row["train/loss"] = float(self.train_loss.compute())
            self.train_loss.reset()
        for name in EVALUATIONS:
            row |= {f"{name}/{key}": value for key, value in self.results(name).items()}
        for key in self.metrics:
            row[f"gap/{key}"] = METRICS[key].gap(row[f"train_eval/{key}"], row[f"val/{key}"])
        for name in EVALUATIONS:
            self._refuse_nan(torch.tensor(row[f"{name}/loss"]), name)
        self.history.append(row)

    def on_test_epoch_start(self) -> None:
        self.test_items = {}

    def test_step(self, batch: Any, batch_idx: int) -> None:
        for key, values in (self.evaluate("test", batch) or {}).items():
            self.test_items.setdefault(key, []).append(values.detach().float().cpu())

    def on_test_epoch_end(self) -> None:
        self.tested = {f"test/{key}": value for key, value in self.results("test").items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"model.{name}": value for name, value in adapter_parameters(self.model).items()}
        so_far = {"mean_value": self.train_loss.mean_value, "weight": self.train_loss.weight}
        checkpoint["task"] = {"history": self.history, "method": self.method.state(self.model), "train_loss": so_far}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["task"]["history"]
        for name, value in checkpoint["task"]["train_loss"].items():
            setattr(self.train_loss, name, value)
        self.method.load_state(self.model, checkpoint["task"]["method"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters with their learning rates, as the optimizer takes them."""
        cfg = self.optimizer_config
        return param_groups(self.model, lr=cfg.lr, gate_lr=cfg.gate_lr)

    def configure_optimizers(self) -> Any:
        cfg = self.optimizer_config
        optimizer = torch.optim.AdamW(self.parameter_groups(), weight_decay=cfg.weight_decay)
        schedule = _schedule(optimizer, self.steps, cfg.warmup, cfg.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _refuse_nan(self, loss: Tensor, where: str) -> None:
        if torch.isfinite(loss):
            return
        advice = f"a lower optimizer.lr (now {self.optimizer_config.lr:g}) or trainer.gradient_clip_val=1.0 may help."
        if self.trainer.precision == "16-true":
            advice = (
                "trainer.precision=16-true keeps AdamW's epsilon (1e-8) in float16, where it is 0, so that a gradient of 0 is "
                "divided by 0: use 16-mixed or bf16-true."
            )
        raise Diverged(
            f"the {where} loss became {loss.item()} in epoch {self.current_epoch}, step {self.trainer.global_step}; {advice}"
        )


def _schedule(optimizer: torch.optim.Optimizer, total: int, warmup: float, kind: str) -> LRScheduler:
    """Linear warm-up over a share of `total` steps, then "cosine" or "constant"."""
    steps = min(total - 1, round(warmup * total))
    parts: list[LRScheduler] = []
    if steps > 0:
        parts.append(LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps))
    if kind == "cosine":
        parts.append(CosineAnnealingLR(optimizer, T_max=max(1, total - steps)))
    else:
        parts.append(ConstantLR(optimizer, factor=1.0))
    return SequentialLR(optimizer, parts, milestones=[steps]) if steps else parts[0]


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules in a model, such as the blocks of a transformer."""
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)
