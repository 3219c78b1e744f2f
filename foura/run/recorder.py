"""What watches a training run: the selected epoch, its progress, and the epoch metrics in MLflow."""

import functools
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from foura import ranks
from foura.adapter.freeze import foura_layers
from foura.adapter.gates import OPEN
from foura.methods.attach import adapter_parameters, load_adapter_parameters
from foura.tracking.store import TrackedRun


class SelectedEpoch(Callback):
    """Keeps, in memory, the adapter of the epoch with the best validation metric; a tie keeps the earlier epoch.

    Attributes:
        epoch: the selected epoch, or None before the first evaluation. row: its row of the history.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.sign = -1.0 if metric == "loss" else 1.0
        self.epoch: int | None = None
        self.row: dict[str, float] = {}
        self.state: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        if trainer.state.fn != "fit":
            return
        row = task.history[-1]
        score = self.sign * row[f"val/{self.metric}"]
        if self.epoch is None or score > self.sign * self.row[f"val/{self.metric}"]:
            self.epoch, self.row = int(row["epoch"]), row
            self.state = {
                name: tensor.detach().cpu().clone() for name, tensor in adapter_parameters(task.model).items()
            }

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "row": self.row, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.row, self.state = state["epoch"], state["row"], state["state"]

    def restore(self, task: Any) -> None:
        """Put the selected epoch's adapter back into the model."""
        load_adapter_parameters(task.model, self.state)


class EpochMetrics(Callback):
    """Writes each epoch's row to MLflow in one call; of a continued run, those that are not there yet."""

    def __init__(self, tracked: TrackedRun) -> None:
        self.tracked = tracked
        self.logged = tracked.logged_steps("val/loss")

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        if trainer.state.fn != "fit":
            return
        for row in task.history:
            step = int(row["epoch"])
            if step not in self.logged:
                self.tracked.log_metrics({key: value for key, value in row.items() if key != "epoch"}, step=step)
                self.logged.add(step)


class EpochMeasures(Callback):
    """Adds to each epoch's row what the task measures on some epochs, and how many ranks its gates had open.

    Gates are read while the training part is being evaluated: nothing is computed for it.
    """

    def on_validation_start(self, trainer: Trainer, task: Any) -> None:
        self.open: dict[str, list[float]] = {}
        self.handles = [
            layer.foura_gate["default"].register_forward_hook(functools.partial(self._count, name))
            for name, layer in foura_layers(task.model).items()
            if "default" in layer.foura_gate
        ]

    def on_validation_batch_start(
        self, trainer: Trainer, task: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx > 0:
            self._let_go()

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        self._let_go()
        row = task.history[-1]
        if self.open:
            opened = [sum(counts) / len(counts) for counts in self.open.values()]
            row["adapter/open_ranks"] = ranks.total(sum(opened) / len(opened))[0] / ranks.world()
        if trainer.state.fn == "fit":
            with torch.random.fork_rng(devices=[]):  # whether something is measured must not change the training
                row |= task.epoch_measures()

    def _count(self, name: str, gate: Any, inputs: Any, gates: Tensor) -> None:
        mask = gate.mask_for(gates)
        counted = gates if mask is None else gates[mask]
        self.open.setdefault(name, []).append(float((counted > OPEN).sum(-1).float().mean()))

    def _let_go(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


class EpochPictures(Callback):
    """Sends the pictures that the task draws after an epoch to MLflow, under samples/."""

    def __init__(self, tracked: TrackedRun, folder: Path) -> None:
        self.tracked, self.folder = tracked, folder

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        if trainer.state.fn == "fit":
            for path in task.epoch_pictures(self.folder):
                self.tracked.log_artifact(path, "samples")


class ProgressLines(Callback):
    """A bar with ETA on a terminal; plain lines, about ten a run, anywhere else (none if `lines` is false)."""

    def __init__(self, console: Console, title: str, bar: bool, lines: bool) -> None:
        self.console, self.title, self.lines = console, title, lines
        self.bar = bar and console.is_terminal
        self.progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        self.began, self.first = time.monotonic(), trainer.global_step
        self.total = int(trainer.estimated_stepping_batches)
        if self.bar:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[metrics]}"))
            times = (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
            self.progress = Progress(TextColumn("{task.description}"), *columns, *times, console=self.console)
            self.progress.start()
            self.row = self.progress.add_task(self.title, total=self.total, metrics="")

    def on_train_batch_end(self, trainer: Trainer, task: Any, out: Any, batch: Any, batch_idx: int) -> None:
        if self.progress is not None:
            self.progress.update(self.row, completed=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        row = task.history[-1]
        train, val, gap = (row[f"{part}/{task.headline}"] for part in ("train_eval", "val", "gap"))
        text = f"{task.headline} train {train:.3f} val {val:.3f} gap {gap:+.3f}"
        if self.progress is not None:
            self.progress.update(self.row, metrics=text)
            return
        if not self.lines:
            return
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        epoch = trainer.current_epoch + 1
        if trainer.state.fn != "fit" or (epochs and epoch % max(1, epochs // 10) and epoch != epochs):
            return
        done, to_do = trainer.global_step - self.first, self.total - trainer.global_step
        left = (time.monotonic() - self.began) * to_do / done if done else 0.0
        self.console.print(f"{self.title}: epoch {epoch}{f'/{epochs}' if epochs else ''}  {text}  ETA {left:.0f} s")

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, task: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
