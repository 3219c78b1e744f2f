"""Shared by all tests: seeds, the checkout, and `train.py` as a function."""

import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from foura.threads import wait_without_spinning

wait_without_spinning()
import torch  # noqa: E402 (it reads the variables of its threads once)

ROOT = Path(__file__).resolve().parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported, which would otherwise try for half a minute
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


@dataclass
class Ended:
    """How a command ended."""

    code: Any  # 0, or what sys.exit was given
    out: str
    outputs: Path

    def folder(self) -> Path:
        """The folder of the only run."""
        (status,) = self.outputs.glob("runs/*/status.json")
        return status.parent


@pytest.fixture
def train(tmp_path, monkeypatch, capsys) -> Callable[..., Ended]:
    """train("adapter=lora", …): `python train.py adapter=lora …` with its outputs in tmp_path, in this process."""
    from hydra.core.global_hydra import GlobalHydra

    def call(*arguments: str, into: str = "outputs") -> Ended:
        outputs = tmp_path / into
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, f"outputs={outputs}"])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
        GlobalHydra.instance().clear()
        code: Any = 0
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return Ended(code, printed.out + printed.err, outputs)

    return call
