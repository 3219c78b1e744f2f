"""Loading models of timm."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_unset() -> Iterator[list[str]]:
    """Names of the weights that timm did not find and left at random: with a new head it tells its log alone."""
    names: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found = re.match(r"Missing keys \((.*)\) discovered", record.getMessage())
            names.extend(found.group(1).split(", ") if found else [])

    log, listener = logging.getLogger("timm.models._builder"), Listener()
    level = log.level
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    try:
        yield names
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
