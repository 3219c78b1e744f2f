"""Keeping a run so that it goes on where it left off: after each epoch, now and then within one, and when it is to stop."""

import os
import signal
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from foura import ranks
from foura.errors import Interrupted
from foura.files import unfit

SAVE_EVERY = 600.0  # seconds between checkpoints within an epoch
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Lightning's, and what our tasks add
KEYS = {"epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "task"}


class Checkpoint(Callback):
    """Writes what a run needs to go on: adapter, optimizer, schedule, history, random states, and the place in the epoch.

    It is Lightning's checkpoint without the frozen weights, and holds nothing but tensors and plain values. Written after
    each epoch, every `SAVE_EVERY` seconds, and when a signal asks the run to stop, which then ends with `Interrupted`.

    Args:
        generators: that the run draws from, beside PyTorch's own.
        batches: the sampler of the training batches.
    """

    def __init__(self, path: Path, generators: list[torch.Generator], batches: Any) -> None:
        self.path, self.generators, self.batches = path, generators, batches
        self.signals = Signals()
        self.within = 0  # batches of a half-done epoch
        self.step, self.saved = 0, time.monotonic()

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        self.signals.catch()

    def on_train_batch_end(self, trainer: Trainer, task: Any, out: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step or trainer.is_last_batch:
            return  # gradients are being gathered, or the end of the epoch comes next
        self.step = trainer.global_step
        due = ranks.rank() == 0 and time.monotonic() - self.saved > SAVE_EVERY
        stop, save = ranks.total(self.signals.asked is not None, due)
        if stop or save:
            self.within = batch_idx + 1
            self._write(trainer)
        if stop:
            self.signals.end(f"step {trainer.global_step}, in epoch {trainer.current_epoch + 1}")

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        self.within = 0
        self._write(trainer)
        if ranks.total(self.signals.asked is not None)[0]:
            self.signals.end(f"epoch {trainer.current_epoch + 1}")

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        self.signals.let_go()

    def on_exception(self, trainer: Trainer, task: Any, exception: BaseException) -> None:
        self.signals.let_go()

    def _write(self, trainer: Trainer) -> None:
        scratch = self.path.with_suffix(".writing")
        trainer.save_checkpoint(scratch)
        if ranks.rank() == 0:
            os.replace(scratch, self.path)
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


class Signals:
    """Ctrl-C, SIGTERM, and what a scheduler's own handler waits for: put off to where a run can stop and lose nothing.

    A second Ctrl-C does not wait. asked: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.before: dict[int, Any] = {}
        # of a scheduler's; what is there once training runs is Lightning's
        self.others = {signum: signal.getsignal(signum) for signum in CAUGHT}

    def catch(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals are not ours to handle
        for signum in CAUGHT:
            handler = signal.getsignal(signum)
            if signum == signal.SIGINT and handler == signal.SIG_IGN:
                continue  # started in the background of a shell, where Ctrl-C is for others
            if signum in (signal.SIGINT, signal.SIGTERM) or callable(handler):
                self.before[signum] = signal.signal(signum, self._put_off)

    def let_go(self) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.before = {}

    def _put_off(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT:
            if self.asked == signum:
                raise KeyboardInterrupt
            if ranks.rank() == 0:
                print("\nCtrl-C: stopping where the run can go on later; once more stops at once", flush=True)
        self.asked = signum

    def end(self, where: str) -> None:
        """Stop now; a scheduler's handler comes first (ours and submitit's put a job of Slurm's into the queue again)."""
        signum = self.asked or signal.SIGTERM  # of another rank, where none came here
        handler = self.others.get(signal.Signals(signum))
        self.let_go()
        if signum != signal.SIGINT and callable(handler) and handler is not ranks.exit_on_signal:
            handler(signum, None)
        name = signal.Signals(signum).name
        raise Interrupted(f"stopped by {name} after {where}; the same command goes on from there.", signum)


def usable(path: Path, trained: dict[str, Any]) -> bool:
    """Whether there is a checkpoint to go on from; one that was cut short is none, and is no reason to fail.

    Nor is a file that is no checkpoint of a run, or that PyTorch would not have written: nothing of it is executed, and
    nothing is unpacked that would be larger than the file.

    Args:
        trained: what `attach.adapter_parameters` has of the run's model, which the checkpoint's has to be like.
    """
    try:
        if not path.is_file():
            return False
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type != zipfile.ZIP_STORED for part in file.infolist()):
                return False
            if file.testzip() is not None:  # torch.load does not look at the checksums
                return False
        found = torch.load(path, weights_only=True, map_location="cpu")
        if not found.keys() >= KEYS or not isinstance(found["epoch"], int):
            return False
        return unfit(found["state_dict"], {f"model.{name}": value for name, value in trained.items()}) is None
    except Exception:  # of a damaged file the parsers of zip, of pickle and of PyTorch raise what they stumble over
        return False


def place(path: Path) -> str:
    """Where a checkpoint was written, in words."""
    kept = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    batches: Any = next(state["within"] for key, state in kept["callbacks"].items() if key.startswith("Checkpoint"))
    epoch = f"epoch {kept['epoch'] + 1}"
    return f"batch {batches['batches']} of {epoch}" if batches["batches"] else epoch
