"""Where a run starts: not at all, anew, or from a checkpoint. Everything about that is decided here.

1. `needed`, before anything heavy is imported: the result may be there already.
2. `clear`: from then on, a checkpoint in the run's folder is one of this very experiment, started and without a result.
3. `resumes`, once the model is built: the checkpoint is intact and of this model, and the tracking store has the run.

A run that failed resumes too, whatever it failed at: after its last epoch only the measuring is left, and training continues
to the same numbers. A failure that the checkpoint itself causes is left by force=true.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foura.errors import UserError
from foura.files import unfit
from foura.tracking.status import DONE, RunStatus
from foura.untrusted import MB, Folder

PATIENCE = 2  # times that a run of a sweep may be killed at the same place before the sweep skips it
LEFT = ("running", "interrupted", "failed")  # states of runs that may resume
# the parts of a checkpoint: Lightning's, and what our tasks add
LEAST_MOST, MOST_PER_BYTE = 256 * MB, 16  # bytes of a checkpoint, and beside them per byte of what is trained
KEYS = {"epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "task"}


def needed(status: RunStatus, key: str, again: bool) -> bool:
    """False if this experiment has its result already.

    Args:
        key: of the experiment. again: true runs it in any case.

    Raises:
        UserError: its process was killed at the same place several times in a row.
    """
    if again:
        return True
    if done(status.previous, key):
        return False
    if status.killed >= PATIENCE:
        raise UserError(
            f"its process was killed {status.killed} times before it got any further, as when memory runs out; the same "
            "command tries it again."
        )
    return True


def done(previous: Mapping[str, Any], key: str) -> bool:
    """True if status.json, as an earlier process left it, has the result of the experiment `key`."""
    return previous.get("key") == key and previous.get("state") in DONE


def clear(status: RunStatus, key: str, force: bool) -> None:
    """Delete a checkpoint that must not be resumed from: of another experiment, of one with a result, or with `force`."""
    left = status.previous.get("key") == key and status.previous.get("state") in LEFT
    if force or not left:
        status.checkpoint.unlink(missing_ok=True)


def resumes(
    checkpoint: Path, trained: Callable[[], dict[str, Any]], stage: Callable[[], str], say: Callable[[str], None]
) -> bool:
    """True if the run resumes from its checkpoint, which is deleted otherwise.

    Args:
        trained: returns the model's `adapter_parameters`, which the checkpoint's have to match.
        stage: `TrackedRun.stage` of the run: one that a user deleted in the store, or that was never logged, starts anew.
        say: is told why a checkpoint is not used.
    """
    if not checkpoint.exists():
        return False
    if not usable(checkpoint, trained()):
        say(f"{checkpoint.name} in the run's folder is damaged or of another model: the run starts anew")
    elif stage() not in ("hidden", "none"):
        return True
    checkpoint.unlink(missing_ok=True)
    return False


def usable(path: Path, trained: dict[str, Any]) -> bool:
    """True for an intact checkpoint of a model with these tensors.

    Checkpoints are untrusted: nothing in the file is executed, and nothing is unpacked that would be larger than the file.
    """
    import torch

    try:
        held = sum(value.numel() * value.element_size() for value in trained.values())
        path = Folder(path.parent).file(path.name, LEAST_MOST + MOST_PER_BYTE * held)
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type != zipfile.ZIP_STORED for part in file.infolist()):
                return False
            if file.testzip() is not None:  # torch.load does not verify the checksums
                return False
        found = torch.load(path, weights_only=True, map_location="cpu")
        if not found.keys() >= KEYS or not isinstance(found["epoch"], int) or _expanded(found):
            return False
        return unfit(found["state_dict"], {f"model.{name}": value for name, value in trained.items()}) is None
    except Exception:  # the parsers of zip, of pickle and of PyTorch raise whatever a damaged file leads them to
        return False


def _expanded(found: Any) -> bool:
    """True if a tensor is larger than what is stored of it, which takes no room in the file: it would once it is copied."""
    waiting = [found]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list | tuple):
            waiting += value.values() if isinstance(value, dict) else value
        elif hasattr(value, "untyped_storage"):
            stored = value.untyped_storage().nbytes()
            if value.numel() * value.element_size() > stored:
                return True
    return False


def place(path: Path) -> str:
    """The point of the training at which a checkpoint was written, in words: "epoch 3", or "batch 7 of epoch 4"."""
    import torch

    kept = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    batches: Any = next(state["within"] for key, state in kept["callbacks"].items() if key.startswith("Checkpoint"))
    epoch = f"epoch {kept['epoch'] + 1}"
    return f"batch {batches['batches']} of {epoch}" if batches["batches"] else epoch
