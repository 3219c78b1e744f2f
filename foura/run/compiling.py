"""torch.compile for the training steps of a run (backbone.compile)."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from foura.errors import UserError, reason
from foura.families.task import Task


@contextmanager
def compiled(task: Task) -> Iterator[None]:
    """Within the context, the backbone runs compiled, if the config says so. What is measured afterwards runs in eager.

    Raises:
        UserError: the model, or this machine, cannot be compiled for, or the compiled code of others would be executed.
    """
    if not task.compiles:
        yield
        return
    _require_own_cache()
    task.model.compile()
    try:
        yield
    except (TorchDynamoException, InductorError) as error:
        raise UserError(
            f"backbone.compile=true: torch.compile could not compile this model here ({reason(error)[:300]}). Leave "
            "backbone.compile out; the results are the same to rounding."
        ) from error
    finally:
        task.model._compiled_call_impl = None


def _require_own_cache() -> None:
    """Require that the folder in which torch.compile looks for code that it has compiled before is this user's own.

    By default it is in the folder for temporary files, under a name that everybody can guess: another user may have made it,
    and what lies in it is unpickled and executed. A folder that TORCHINDUCTOR_CACHE_DIR names is trusted.

    Raises:
        UserError: it is a link, or somebody else's.
    """
    default = Path(default_cache_dir())
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default))  # torch sets it too, once it is imported
    if folder.name != default.name:
        return
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise UserError(
            f"{folder}, from which torch.compile executes code, was made by another user. Name a folder of your own with "
            "TORCHINDUCTOR_CACHE_DIR in the environment, or leave backbone.compile out."
        )
