"""The base of all tasks: one deterministic evaluation for training and validation data, the optimizer, the check for NaN."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torchmetrics import MeanMetric

from foura import distributed
from foura.adapter import param_groups
from foura.errors import Diverged
from foura.methods import method_of
from foura.methods.state import adapter_parameters
from foura.metrics import METRICS

LOOK_EVERY = 50  # steps between looks at the loss on a GPU
EVALUATIONS = ("train_eval", "val")  # the order of the validation dataloaders


class Task(LightningModule):
    """The training of an adapted model.

    After each epoch `history` gains a row {"epoch", "train/loss", "train_eval/<m>", "val/<m>", "gap/<m>", …} with <m>
    the keys in `metrics`; a gap is positive where validation is worse. `tested` has the same for the test data.

    Attributes:
        metrics: keys of `foura.metrics` that `evaluate` measures and that have a gap; "loss" is always among them.
    """

    metrics: tuple[str, ...]

    def __init__(self, model: nn.Module, cfg: DictConfig) -> None:
        super().__init__()
        self.model = model
        self.method, self.adapter_config, self.optimizer_config = method_of(cfg), cfg.adapter, cfg.optimizer
        self.history: list[dict[str, float]] = []
        self.tested: dict[str, float] = {}
        self.train_loss = MeanMetric(nan_strategy="disable", sync_on_compute=False)  # the same in every process
        # while processes share a training batch: the rows of it that are here, and how many there are in all
        self.rows: list[int] | None = None
        self.batch_size = 0
        self.generators: list[torch.Generator] = []  # training draws from them, beside PyTorch's own
        self.strict_loading = False  # checkpoints leave the frozen weights out

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch, a scalar."""

    @abstractmethod
    def evaluate(self, name: str, batch: Any) -> None:
        """Add a batch to the evaluation `name` ("train_eval", "val" or "test")."""

    @abstractmethod
    def results(self, name: str) -> dict[str, float]:
        """{metric: value} of an evaluation, which starts anew afterwards."""

    def mean_loss(self, batches: Iterable[Any]) -> float:
        """The loss over some batches, by the same evaluation as for test data."""
        for batch in batches:
            self.evaluate("test", batch)
        return self.results("test")["loss"]

    def terms(self, batch: Any) -> Any:
        """The number of terms that the loss of a batch is the mean of."""
        return len(batch[0])

    def inputs(self, batch: Any) -> Any:
        """The model's input in a batch: a tensor, or a mapping of keyword arguments."""
        return batch[0]

    def final_measures(self, data: Any, folder: Path) -> dict[str, float]:
        """Further metrics of the selected epoch, measured once; images and texts are written to `folder`."""
        return {}

    def epoch_pictures(self, folder: Path) -> list[Path]:
        """Images generated after this epoch, written to `folder`."""
        return []

    def epoch_measures(self) -> dict[str, float]:
        """Further metrics of this epoch, beside the evaluation."""
        return {}

    def configure_model(self) -> None:
        """For trainer=fsdp: shard the weights block by block, so that one block at a time is whole."""
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
        # a look at the value makes a GPU wait for it, so there it is taken now and then
        if loss.device.type == "cpu" or batch_idx % LOOK_EVERY == 0:
            self._refuse_nan(value, "training")
        extra = self.method.loss(self.model)
        return loss if extra is None else loss + extra

    def _shared_loss(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """(a loss whose gradient, averaged over processes, is that of their batches together; the loss of that whole batch)."""
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

    def on_train_epoch_start(self) -> None:
        # frozen batch norms must not go on averaging: the backbone would change behind the adapter
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
                parameter.requires_grad for parameter in module.parameters()
            ):
                module.eval()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        # the gradients are still there, and a checkpoint that follows has it all
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

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("test", batch)

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
        cfg = self.optimizer_config
        return param_groups(self.model, lr=cfg.lr, gate_lr=cfg.gate_lr)

    def configure_optimizers(self) -> Any:
        cfg = self.optimizer_config
        optimizer = torch.optim.AdamW(self.parameter_groups(), weight_decay=cfg.weight_decay)
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


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of a model's outermost lists of modules, such as the blocks of a transformer."""
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)
