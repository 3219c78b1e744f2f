"""torch.compile for the training steps of a run (backbone.compile)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

from foura.errors import UserError, reason
from foura.families.task import Task


@contextmanager
def compiled(task: Task) -> Iterator[None]:
    """Within the context, the backbone runs compiled, if the config says so. What is measured afterwards runs in eager.

    Raises:
        UserError: the model, or this machine, cannot be compiled for.
    """
    if not task.compiles:
        yield
        return
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
