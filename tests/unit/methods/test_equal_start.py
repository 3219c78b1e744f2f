"""A fair comparison: runs of one seed differ in their adapter and in nothing else."""

import pytest
import torch
from pytorch_lightning import seed_everything

from foura.families import build
from foura.methods.attach import attach
from foura.run.loop import Loaders
from tests.helpers.config import composed


def begun(adapter: str, seed: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """(what an adapted model starts from beside its adapter, the images of its first two epochs in order)."""
    cfg = composed(f"adapter={adapter}", f"seed={seed}", "rank=4", "dataset.limit=40")
    seed_everything(cfg.seed, verbose=False)
    parts = build(cfg)
    loaders = Loaders(parts.data, cfg)
    seed_everything(cfg.seed, verbose=False)
    model = attach(parts.backbone, cfg, steps=loaders.steps())
    own = ("lora_", "foura_", "vera_", "ranknum", "magnitude")
    start = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in model.state_dict().items()
        if not any(mark in name for mark in own) and "original_module" not in name
    }
    start = {name.replace(".modules_to_save.default", ""): value for name, value in start.items()}
    return start, [images for _ in range(2) for images, _ in loaders.train]


@pytest.mark.parametrize("adapter", ["foura", "foura_dft", "dora", "adalora", "full"])
def test_one_seed_has_one_start_and_one_order(adapter) -> None:
    (start, order), (others, other_order) = begun("lora", 3), begun(adapter, 3)
    assert start.keys() == others.keys() and all(torch.equal(start[name], others[name]) for name in start)
    assert all(torch.equal(a, b) for a, b in zip(order, other_order, strict=True))


def test_another_seed_has_others() -> None:
    (start, order), (others, other_order) = begun("lora", 3), begun("lora", 4)
    assert not torch.equal(start["head.weight"], others["head.weight"])
    assert not torch.equal(order[0], other_order[0])
