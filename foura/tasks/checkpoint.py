"""Going on after a crash exactly where the last finished epoch left off."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

KEYS = {"epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"}  # Lightning's


class Checkpoint(Callback):
    """Writes after each epoch what a run needs to go on: adapter, optimizer, schedule, history and random states.

    It is Lightning's checkpoint without the frozen weights, and holds nothing but tensors and plain values.

    Args:
        generators: that the run draws from, beside PyTorch's own.
    """

    def __init__(self, path: Path, generators: list[torch.Generator]) -> None:
        self.path, self.generators = path, generators

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        scratch = self.path.with_suffix(".writing")
        trainer.save_checkpoint(scratch)
        if trainer.is_global_zero:
            os.replace(scratch, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)


def usable(path: Path) -> bool:
    """Whether there is a checkpoint that can be read; one that was cut short cannot, and is no reason to fail.

    Nor can a file that is no checkpoint of a run, or that PyTorch would not have written: nothing of it is executed, and
    nothing is unpacked that would be larger than the file.
    """
    try:
        if not path.is_file():
            return False
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type != zipfile.ZIP_STORED for part in file.infolist()):
                return False
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # of a damaged file the parsers of zip, of pickle and of PyTorch raise what they stumble over
        return False
    return isinstance(found, dict) and found.keys() >= KEYS and isinstance(found["epoch"], int)
