"""The record of a training run: everything that happens after an epoch, in the order of `Recorder.on_validation_end`."""

import functools
import math
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from foura import distributed
from foura.adapter.freeze import foura_layers
from foura.adapter.gate import OPEN
from foura.files import write_csv
from foura.methods.state import adapter_parameters, load_adapter_parameters
from foura.metrics import METRICS
from foura.run.progress import ProgressDisplay
from foura.tracking.tracked_run import TrackedRun

ITEMS = "test_items.csv"


class Recorder(Callback):
    """After each epoch: completes its row of the history, keeps the best epoch's adapter, and tells MLflow and the terminal.

    A tie keeps the earlier epoch.

    Args:
        select: key of the metric that selects the epoch, on validation data.
        tracked: the run in MLflow. progress: the run on the terminal. folder: of the run, for images of an epoch.

    Attributes:
        epoch: the selected epoch, from 0; None before the first evaluation. row: its row of the history.
        state: its `adapter_parameters`, on the CPU.
        ranks_by_epoch: {"epoch", layer: open ranks} of each epoch so far; empty without gates.
    """

    def __init__(self, select: str, tracked: TrackedRun, progress: ProgressDisplay, folder: Path) -> None:
        self.metric, self.tracked, self.progress, self.folder = METRICS[select], tracked, progress, folder
        self.epoch: int | None = None
        self.row: dict[str, float] = {}
        self.state: dict[str, Tensor] = {}
        self.logged = tracked.logged_steps("val/loss")
        self.open_ranks = OpenRanks()
        self.ranks_by_epoch: list[dict[str, float]] = []

    @property
    def state_key(self) -> str:
        return "SelectedEpoch"  # the key of its state in checkpoints: 0.1.0 had a class of this name

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        self.progress.start(trainer, task.steps)

    def on_train_batch_end(self, trainer: Trainer, task: Any, out: Any, batch: Any, batch_idx: int) -> None:
        self.progress.step(trainer)

    def on_validation_start(self, trainer: Trainer, task: Any) -> None:
        self.open_ranks.watch(task.model)

    def on_validation_batch_start(
        self, trainer: Trainer, task: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx > 0:
            self.open_ranks.release()  # only the training part is counted

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        self.open_ranks.release()
        if trainer.state.fn != "fit":
            return
        row = task.history[-1]
        row |= self.open_ranks.mean()
        self.ranks_by_epoch += self.open_ranks.by_layer(int(row["epoch"]))
        with torch.random.fork_rng(devices=[]):  # measuring must not change the training
            row |= task.epoch_measures()
        self._select(row, task)
        self._log(task.history)
        for path in task.epoch_images(self.folder):
            self.tracked.log_artifact(path, "samples")
        self.progress.epoch(trainer, row)

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        self.progress.stop()

    def on_exception(self, trainer: Trainer, task: Any, exception: BaseException) -> None:
        self.progress.stop()

    def _select(self, row: dict[str, float], task: Any) -> None:
        name = f"val/{self.metric.key}"
        if self.epoch is None or self.metric.sign * row[name] > self.metric.sign * self.row[name]:
            self.epoch, self.row = int(row["epoch"]), row
            parameters = adapter_parameters(task.model)
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in parameters.items()}

    def _log(self, history: list[dict[str, float]]) -> None:
        """One call per epoch; for a resumed run, also the epochs that the store does not have yet."""
        for row in history:
            step = int(row["epoch"])
            if step not in self.logged:
                self.tracked.log_metrics({key: value for key, value in row.items() if key != "epoch"}, step=step)
                self.logged.add(step)

    def restore(self, task: Any) -> None:
        """Put the selected epoch's adapter back into the model."""
        load_adapter_parameters(task.model, self.state)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "row": self.row, "state": self.state, "ranks_by_epoch": self.ranks_by_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.row, self.state = state["epoch"], state["row"], state["state"]
        self.ranks_by_epoch = state.get("ranks_by_epoch", [])  # 0.1.0 wrote none


class OpenRanks:
    """Counts the ranks that gates open while the model is evaluated anyway.

    Attributes:
        counts: {layer: (open ranks of all inputs so far, inputs so far)} of this process.
    """

    def __init__(self) -> None:
        self.counts: dict[str, tuple[float, float]] = {}
        self.handles: list[Any] = []

    def watch(self, model: Any) -> None:
        """Begin to count."""
        self.counts = {}
        self.handles = [
            layer.foura_gate["default"].register_forward_hook(functools.partial(self._count, name))
            for name, layer in foura_layers(model).items()
            if "default" in layer.foura_gate
        ]

    def release(self) -> None:
        """Stop counting."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def mean(self) -> dict[str, float]:
        """{"adapter/open_ranks": mean over layers and inputs}; {} for a model without gates."""
        means = self._means()
        return {"adapter/open_ranks": sum(means.values()) / len(means)} if means else {}

    def by_layer(self, epoch: int) -> list[dict[str, float]]:
        """[{"epoch", layer: open ranks}], means over inputs; [] for a model without gates."""
        means = self._means()
        return [{"epoch": epoch, **means}] if means else []

    def _means(self) -> dict[str, float]:
        """{layer: open ranks}, means over the inputs of all processes; NaN for a layer that no input has reached."""
        if not self.counts:
            return {}
        totals = distributed.all_reduce_sum(*(number for counts in self.counts.values() for number in counts))
        pairs = zip(totals[::2], totals[1::2], strict=True)
        means = (opened / inputs if inputs else math.nan for opened, inputs in pairs)
        return dict(zip(self.counts, means, strict=True))

    def _count(self, name: str, gate: Any, inputs: Any, gates: Tensor) -> None:
        mask = gate.mask_for(gates)
        counted = gates if mask is None else gates[mask]
        opened = (counted > OPEN).sum(-1)
        before = self.counts.get(name, (0.0, 0.0))  # batches differ in size: a mean of their means is none over inputs
        self.counts[name] = before[0] + float(opened.sum()), before[1] + opened.numel()


class FinalMeasures(Callback):
    """After the test, while the model is still on its device: adds the task's further metrics, and keeps those of each item."""

    def __init__(self, data: Any, folder: Path) -> None:
        self.data, self.folder = data, folder

    def on_test_end(self, trainer: Trainer, task: Any) -> None:
        task.tested |= task.final_measures(self.data, self.folder)
        _write_items(task, self.folder)


def _write_items(task: Any, folder: Path) -> None:
    """Write test_items.csv: a row per test item, in the order of the test data, and a column per metric of `task.test_items`.

    Not written by several processes, each of which has a part of the items.
    """
    if task.test_items and distributed.world_size() == 1:
        columns = {key: torch.cat(parts).tolist() for key, parts in task.test_items.items()}
        rows = zip(*([f"{value:.6g}" for value in values] for values in columns.values()), strict=True)
        write_csv([dict(zip(columns, row, strict=True)) for row in rows], folder / ITEMS)
