"""Waiting for something to come true, with a limit against hanging that no machine should reach."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(true: Callable[[], Found], what: str, seconds: float = 300, every: float = 0.05) -> Found:
    """The first value of `true()` that is true.

    Raises:
        TimeoutError: it did not come true in the time; says `what` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(every)
    return found
