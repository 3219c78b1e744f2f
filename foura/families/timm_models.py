"""Shared by what loads models of timm."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from foura.families.model_files import check_model
from foura.files import here


@contextmanager
def left_unset() -> Iterator[list[str]]:
    """Names of the weights that timm did not find, and left at random, within the context; timm only logs them."""
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


def check_timm(name: str, cfg: DictConfig | None) -> None:
    """Check the files of a timm model that is a folder here or on the hub; a model of timm's own list has none.

    Args:
        name: as `local_name` takes it. cfg: as of `check_model`.

    Raises:
        UserError: one of them is not safe to read.
    """
    kind, _, place = local_name(name).partition(":")
    if kind in ("local-dir", "hf-hub", "hf_hub"):
        check_model(place, cfg)


def local_name(name: str) -> str:
    """The name under which timm loads a model: that of a folder here gets the prefix that timm wants."""
    folder = here(name)
    return f"local-dir:{folder}" if folder is not None and folder.is_dir() else name
