"""Checkpointing: after every epoch, every ten minutes within one, and on SIGINT or SIGTERM."""

import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from foura import distributed
from foura.atomic import put
from foura.run.signals import Signals

SAVE_EVERY = 600.0  # seconds between checkpoints within an epoch


class Checkpoint(Callback):
    """Writes adapter, optimizer, schedule, history, random states, and the point in the epoch.

    The file is Lightning's checkpoint without the frozen weights, and has only tensors and plain values. A signal that asks
    the run to stop ends it with `Interrupted`, after a checkpoint.

    Args:
        path: of the checkpoint. generators: random generators of the run, beside PyTorch's own.
        batches: the sampler of the training batches.
    """

    def __init__(self, path: Path, generators: list[torch.Generator], batches: Any) -> None:
        self.path, self.generators, self.batches = path, generators, batches
        self.signals = Signals()
        self.within = 0  # batches that an unfinished epoch has done
        self.step, self.saved = 0, time.monotonic()

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        self.signals.catch()

    def on_train_batch_end(self, trainer: Trainer, task: Any, out: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step or trainer.is_last_batch or trainer.should_stop:
            return  # within a step of accumulated gradients, or just before the end of the epoch or of the training
        self.step = trainer.global_step
        due = distributed.is_main() and time.monotonic() - self.saved > SAVE_EVERY
        stop, save = distributed.all_reduce_sum(self.signals.asked is not None, due)
        if stop or save:
            self.within = batch_idx + 1
            self._write(trainer)
        if stop:
            self.signals.stop(f"step {trainer.global_step}, in epoch {trainer.current_epoch + 1}")

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        self.within = 0
        self._write(trainer)
        if distributed.all_reduce_sum(self.signals.asked is not None)[0]:
            self.signals.stop(f"epoch {trainer.current_epoch + 1}")

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        self.signals.release()

    def on_exception(self, trainer: Trainer, task: Any, exception: BaseException) -> None:
        self.signals.release()

    def _write(self, trainer: Trainer) -> None:
        scratch = self.path.with_suffix(".writing")
        trainer.save_checkpoint(scratch)
        if distributed.is_main():
            put(scratch, self.path)
        self.saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "generators": [generator.get_state() for generator in self.generators],
            "within": {
                "batches": self.within,
                "order": self.batches.began if self.within else self.batches.generator.get_state(),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)
        self.batches.resume = state["within"]
