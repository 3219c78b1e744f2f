"""Where a run starts: not at all, anew, or from a checkpoint. Everything about that is decided here.

1. `needed`, before anything heavy is imported: the result may be there already.
2. `clear`: from then on, a checkpoint that lies in the run's folder is one of this very experiment, begun and not ended.
3. `find`, once the model is built: that checkpoint, if it is intact and of this model, and the run in the tracking store.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foura.errors import UserError
from foura.files import unfit
from foura.tracking.status import RunStatus

PATIENCE = 2  # times that a run of a sweep may be killed at the same place before the sweep skips it
# the parts of a checkpoint: Lightning's, and what our tasks add
KEYS = {"epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "task"}


def needed(status: RunStatus, key: str, again: bool) -> bool:
    """False if this experiment has its result already.

    Args:
        key: of the experiment. again: run it whatever there is.

    Raises:
        UserError: its process was killed at the same place several times in a row.
    """
    if again:
        return True
    if status.done(key):
        return False
    if status.killed >= PATIENCE:
        raise UserError(
            f"its process was killed {status.killed} times before it got any further, as when memory runs out; the same "
            "command tries it again."
        )
    return True


def clear(status: RunStatus, key: str, force: bool) -> None:
    """Delete a checkpoint that the experiment `key` must not resume from: of another one, of an ended run, or with `force`."""
    if force or not status.unfinished(key):
        status.checkpoint.unlink(missing_ok=True)


def find(checkpoint: Path, trained: dict[str, Any], reopen: Callable[[], Any], say: Callable[[str], None]) -> Any:
    """The interrupted run to resume: as `reopen` returns it from the tracking store, or None for a new run.

    Args:
        checkpoint: where it would be; deleted where the run has to start anew.
        trained: the model's `adapter_parameters`, which the checkpoint's have to match.
        reopen: returns None where the store has hidden the run, or never knew it.
        say: is told why a checkpoint is not used.
    """
    if not checkpoint.exists():
        return None
    run = None
    if usable(checkpoint, trained):
        run = reopen()
    else:
        say(f"{checkpoint.name} in the run's folder is damaged or of another model: the run starts anew")
    if run is None:
        checkpoint.unlink(missing_ok=True)
    return run


def usable(path: Path, trained: dict[str, Any]) -> bool:
    """True for an intact checkpoint of a model with these tensors.

    Checkpoints are untrusted: nothing in the file is executed, and nothing is unpacked that would be larger than the file.
    """
    import torch

    try:
        if not path.is_file():
            return False
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type != zipfile.ZIP_STORED for part in file.infolist()):
                return False
            if file.testzip() is not None:  # torch.load does not verify the checksums
                return False
        found = torch.load(path, weights_only=True, map_location="cpu")
        if not found.keys() >= KEYS or not isinstance(found["epoch"], int):
            return False
        return unfit(found["state_dict"], {f"model.{name}": value for name, value in trained.items()}) is None
    except Exception:  # the parsers of zip, of pickle and of PyTorch raise whatever a damaged file leads them to
        return False


def place(path: Path) -> str:
    """The place in training at which a checkpoint was written, in words."""
    import torch

    kept = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    batches: Any = next(state["within"] for key, state in kept["callbacks"].items() if key.startswith("Checkpoint"))
    epoch = f"epoch {kept['epoch'] + 1}"
    return f"batch {batches['batches']} of {epoch}" if batches["batches"] else epoch
