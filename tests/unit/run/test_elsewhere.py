"""Runs that were trained on a GPU, exported and merged on a machine that has none."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from pytorch_lightning import LightningModule

from foura.data.run_data import RunData
from foura.families import diffusion
from foura.run import merge
from tests.helpers.config import composed


class Counted(LightningModule):
    """Its test result is the number of test items."""

    def __init__(self) -> None:
        super().__init__()
        self.tested: dict[str, float] = {}
        self.test_items: dict[str, list[torch.Tensor]] = {}
        self.found = 0

    def test_step(self, batch, batch_idx) -> None:
        self.found += len(batch)

    def on_test_epoch_end(self) -> None:
        self.tested = {"test/items": float(self.found)}

    def final_measures(self, data, folder) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps", "cpu", "auto"])
def test_adapters_are_merged_on_what_the_machine_has(accelerator, tmp_path) -> None:
    items = list(torch.zeros(5, 2))
    data = RunData(
        train=items, train_eval=items, validation=items, test=items, sizes={}, fingerprint="", collate=torch.stack
    )
    parts = SimpleNamespace(data=data, task=lambda model: model)
    cfg = composed("adapter=foura", f"trainer.accelerator={accelerator}")
    assert merge._test(parts, Counted(), cfg, tmp_path) == {"test/items": 5.0}


@pytest.mark.parametrize(("accelerator", "found", "moved"), [("gpu", True, 1), ("gpu", False, 0), ("cpu", True, 0)])
def test_images_are_encoded_on_the_gpu_if_there_is_one(accelerator, found, moved, monkeypatch) -> None:
    backbone = Mock()
    monkeypatch.setattr("foura.families.diffusion.backbone.build_unet", lambda cfg: backbone)
    monkeypatch.setattr("foura.families.diffusion.data.prepare_captioned", Mock())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    cfg = composed("backbone=unet", "adapter=foura", f"trainer.accelerator={accelerator}")
    diffusion.FAMILY.build(cfg)
    assert backbone.vae.to.call_count == moved
