"""Cost of training: time of a step, peak memory, floating-point operations."""

import statistics
import sys
import time
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch.utils.flop_counter import FlopCounterMode


class Cost(Callback):
    """Time and memory of training. The time of a step is that of an epoch over its steps, the median over epochs.

    A GPU is waited for at the two ends of an epoch only, so that measuring does not slow what it measures.
    """

    def __init__(self) -> None:
        self.step_times: list[float] = []
        self.first: int | None = None
        self.device = torch.device("cpu")
        self.earlier_mb = 0.0  # peak memory before the run resumed

    def on_fit_start(self, trainer: Trainer, task: Any) -> None:
        self.device = task.device
        _reset_peak_memory(self.device)

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        if self.first is None:  # in an epoch, or in the rest of one after resuming
            _wait(task.device)
            self.began, self.first = time.perf_counter(), batch_idx

    def on_train_batch_end(self, trainer: Trainer, task: Any, out: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch and self.first is not None:
            _wait(task.device)
            self.step_times.append((time.perf_counter() - self.began) / (batch_idx + 1 - self.first))
            self.first = None

    def state_dict(self) -> dict[str, Any]:
        return {"step_times": self.step_times, "peak_mb": self.peak_memory_mb()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_times = state["step_times"]
        self.earlier_mb = state.get("peak_mb", 0.0)  # not in checkpoints of 0.1.0

    def step_time_ms(self) -> float:
        """Milliseconds per step; the first epoch, which warms up, counts only if it is the only one."""
        measured = self.step_times[1:] or self.step_times
        return 1000.0 * statistics.median(measured) if measured else float("nan")

    def peak_memory_mb(self) -> float:
        """Peak memory since the start of training, in MB: of the GPU, else resident memory of the process."""
        return max(self.earlier_mb, _peak_memory_mb(self.device))


def step_gflops(task: Any, batch: Any) -> float:
    """Billions of floating-point operations in matrix products and convolutions of one training step on a batch.

    Fourier transforms are not counted: there are few of them, and each costs less than a matrix product. The step runs in
    the precision of the task's trainer.
    """
    counter, precision = FlopCounterMode(display=False), task.trainer.precision_plugin
    chance = [generator.get_state() for generator in task.generators]
    with counter, torch.enable_grad():
        with precision.train_step_context():
            loss = task.loss(precision.convert_input(batch))
        loss.backward()
    for generator, state in zip(task.generators, chance, strict=True):
        generator.set_state(state)
    task.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 1e9


def _peak_memory_mb(device: torch.device) -> float:
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
