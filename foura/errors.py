"""Mistakes of a user, each said in one sentence. Any other exception that reaches the terminal is a bug of ours."""

import errno
import re
import sys
import traceback
from types import TracebackType
from typing import NoReturn

from foura.escape import printable, redact

# import names of the packages that the extra "lab" installs
LAB: tuple[str, ...] = (
    "torchvision",
    "diffusers",
    "pytorch_lightning",
    "lightning_fabric",
    "torchmetrics",
    "timm",
    "hydra",
    "omegaconf",
)
LAB += ("mlflow", "datasets", "sklearn", "scipy", "matplotlib", "pandas", "jinja2", "filelock", "PIL", "numpy", "rich")
LAB += ("hydra_plugins",)
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
FULL = ("No space left on device", "disk is full", "Read-only file system", "Disk quota exceeded")
LONGEST = 1500  # characters of a message, which may quote a user's input of any length


class UserError(Exception):
    """One sentence: what was found, and what to do about it. It ends a run with a non-zero exit and no traceback.

    A DataLoader makes the error of a worker process anew, with the worker's traceback as its text: the sentence is its end.
    """

    def __init__(self, said: str) -> None:
        if said.startswith("Caught ") and "DataLoader worker process" in said:
            said = (re.findall(rf"^{__name__}\.\w+: (.*)$", said, flags=re.MULTILINE) or [said])[-1]
        super().__init__(one_line(said))


class Diverged(UserError):
    """The loss became NaN or infinite. The run ends in state "diverged", which is a result, not a crash."""


class Busy(UserError):
    """Another process is executing the same run."""


class Interrupted(UserError):
    """A signal asked the run to stop, and it stopped at a point from which it can resume.

    Args:
        signum: the signal; the process exits with 128 + signum, as a shell reports it.
    """

    def __init__(self, sentence: str, signum: int) -> None:
        super().__init__(sentence)
        self.code = 128 + signum


class Ended(UserError):
    """A run in several processes ended in `state`, other than "finished"."""

    def __init__(self, sentence: str, state: str) -> None:
        super().__init__(sentence)
        self.state = state


def exit_without_lab(error: ModuleNotFoundError) -> NoReturn:
    """Exit with one sentence if a package of the extra "lab" is missing; raise the error again if it is another one."""
    if (error.name or "").partition(".")[0] not in LAB:
        raise error
    sys.exit(f"error: {error.name} is not installed, and the framework needs it: pip install 'foura[lab]'")


def panicked(error: BaseException) -> bool:
    """True for the end of a library in Rust (tokenizers, safetensors) on data that it did not expect; it is no Exception."""
    return type(error).__name__ == "PanicException"


def out_of_memory(error: BaseException) -> bool:
    """True if a GPU, the system or Python refused an allocation."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def cannot_write(error: BaseException | None) -> bool:
    """True if this error, or one that caused it, is a disk that is full or cannot be written to."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES):
            return True
        if any(words.lower() in str(error).lower() for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def without_shared_memory(error: BaseException | None) -> str | None:
    """The sentence for this error, or one that caused it, where it is the shared memory (/dev/shm); None for another one.

    Workers hand their batches through it, and every lock between processes lies in it.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said = str(error)
        if "shared memory" in said or "/dev/shm" in said or "</torch_" in said or _no_semaphore(error):
            return (
                f"the shared memory of this machine or container is full ({first_line(error)[:200]}), through which processes "
                "hand over data. Make /dev/shm larger (docker run --shm-size=2g), or set dataset.num_workers=0, and leave out "
                "hydra/launcher=joblib."
            )
        error = error.__cause__ or error.__context__
    return None


def _no_semaphore(error: BaseException) -> bool:
    """True if there was no room for a semaphore, which lies in /dev/shm too; the error names no file."""
    raised_in = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None
    return full and any(name.endswith("synchronize.py") for name in raised_in)


def one_line(said: str) -> str:
    """The text on one line of bounded length that every terminal can print, without credentials: it may quote anything."""
    said = printable(redact(" ".join(line.strip() for line in said.split("\n") if line.strip())))
    return said if len(said) <= LONGEST else f"{said[: LONGEST // 2]} … {said[-LONGEST // 2 :]}"


def reason(error: BaseException) -> str:
    """An error's whole message on one line, at most 300 characters; its type where the message is empty."""
    return one_line(str(error))[:300] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; its type where the message is empty."""
    lines = [line for line in redact(str(error)).splitlines() if line.strip()]
    return printable(lines[0].strip())[:300] if lines else type(error).__name__


def traceback_of(error: BaseException) -> str:
    """The traceback of an error without credentials: libraries quote URIs in their messages."""
    return redact("".join(traceback.format_exception(error)))


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of the commands."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
