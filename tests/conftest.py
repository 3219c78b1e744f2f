"""Shared by all tests: seeds, the checkout, and `train.py` as a function."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from foura.threads import spin_briefly

spin_briefly()
os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported, which would otherwise try for half a minute
import torch  # noqa: E402 (it reads the variables of its threads once)

from tests.helpers.commands import ROOT, Ended, new_store, run_train  # noqa: E402

settings.register_profile("all")  # pytest --hypothesis-profile=all: every example that is generated


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def run_env() -> dict[str, str]:
    """The environment of a command: this checkout importable, one thread, no hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An SQLite store of MLflow's with nothing in it, to copy."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    new_store(path)
    return path


@pytest.fixture(scope="session")
def train_into(empty_store) -> Callable[..., Ended]:
    """train_into(outputs, "adapter=lora", …): `python train.py adapter=lora … outputs=OUTPUTS`, in this process.

    fresh: the command makes the tracking store itself; otherwise it finds one with nothing in it.
    """

    def call(outputs: Path, *arguments: str, fresh: bool = False) -> Ended:
        if not fresh and not (outputs / "mlflow.db").exists():
            outputs.mkdir(parents=True, exist_ok=True)
            shutil.copy(empty_store, outputs)
        return run_train(*arguments, outputs=outputs)

    return call


@pytest.fixture
def train(tmp_path, train_into) -> Callable[..., Ended]:
    """train("adapter=lora", …, into="there"): the same, into a folder of this test."""

    def call(*arguments: str, into: str = "outputs", fresh: bool = False) -> Ended:
        return train_into(tmp_path / into, *arguments, fresh=fresh)

    return call
