"""What watches a training run: the selected epoch, its cost, its progress, and the epoch metrics in MLflow."""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from foura.attach import adapter_parameters
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

    def restore(self, task: Any) -> None:
        """Put the selected epoch's adapter back into the model."""
        task.model.load_state_dict(self.state, strict=False)


class Cost(Callback):
    """The time of a training step: that of an epoch's steps over their number, the median over epochs.

    A GPU is waited for at the two ends of an epoch only, so that measuring does not slow what it measures.
    """

    def __init__(self) -> None:
        self.step_times: list[float] = []

    def on_fit_start(self, trainer: Trainer, task: Any) -> None:
        _reset_peak_memory(task.device)

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            _wait(task.device)
            self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, task: Any, out: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            _wait(task.device)
            self.step_times.append((time.perf_counter() - self.began) / (batch_idx + 1))

    def step_time_ms(self) -> float:
        """Milliseconds a step; the first epoch, which warms up, counts only if it is the only one."""
        measured = self.step_times[1:] or self.step_times
        return 1000.0 * statistics.median(measured) if measured else float("nan")


class EpochMetrics(Callback):
    """Writes each epoch's row to MLflow in one call."""

    def __init__(self, tracked: TrackedRun) -> None:
        self.tracked = tracked

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        if trainer.state.fn != "fit":
            return
        row = {key: value for key, value in task.history[-1].items() if key != "epoch"}
        self.tracked.log_metrics(row, step=int(task.history[-1]["epoch"]))


class EpochPictures(Callback):
    """Sends the pictures that the task draws after an epoch to MLflow, under samples/."""

    def __init__(self, tracked: TrackedRun, folder: Path) -> None:
        self.tracked, self.folder = tracked, folder

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        if trainer.state.fn == "fit":
            for path in task.epoch_pictures(self.folder):
                self.tracked.log_artifact(path, "samples")


class ProgressLines(Callback):
    """A bar with ETA on a terminal; plain lines, about ten a run, anywhere else."""

    def __init__(self, console: Console, title: str, bar: bool) -> None:
        self.console, self.title = console, title
        self.bar = bar and console.is_terminal
        self.progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        self.began = time.monotonic()
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
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        epoch = trainer.current_epoch + 1
        if trainer.state.fn != "fit" or (epochs and epoch % max(1, epochs // 10) and epoch != epochs):
            return
        done = trainer.global_step / self.total
        left = (time.monotonic() - self.began) * (1 / done - 1) if done else 0.0
        self.console.print(f"{self.title}: epoch {epoch}{f'/{epochs}' if epochs else ''}  {text}  ETA {left:.0f} s")

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, task: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since the start of training, in MB: of the GPU, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 / 1e6 for line in file if line.startswith("VmHWM"))
    except OSError:  # not Linux: the peak of the whole process, which is in bytes on macOS
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # several runs of a sweep share this process: each has its own peak
    except OSError:
        pass  # not Linux, or not allowed: the peak is then that of the process so far


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
