"""Tests that need a GPU: `make test-gpu`. They are in no other target, and without CUDA they end in one sentence."""

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.gpu)
    if here and not torch.cuda.is_available():
        pytest.exit("these tests need a GPU: torch.cuda.is_available() is False on this machine.", returncode=1)
