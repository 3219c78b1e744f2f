"""Additions of single methods to training: state that resumes, what is saved of them, and which weights they change."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from foura.families import build
from foura.families.family import Parts
from foura.families.task import Task
from foura.methods import METHODS
from foura.methods.attach import attach
from foura.methods.state import adapter_parameters, load_adapter_parameters
from foura.run.artifacts import save_adapter
from foura.run.load import load_adapter
from tests.helpers.config import composed

STEPS = 10


@pytest.fixture
def images() -> Tensor:
    return torch.rand(8, 1, 16, 16)


def begun(*overrides: str) -> tuple[DictConfig, Parts, Any]:
    cfg = composed("rank=4", "dataset.limit=20", *overrides)
    torch.manual_seed(0)
    parts = build(cfg)
    return cfg, parts, attach(parts.backbone, cfg, steps=STEPS)


def train(cfg: DictConfig, model: Any, images: Tensor, first: int, last: int) -> None:
    """Steps `first` to `last` of normalised gradient descent, which has no state of its own."""
    method = METHODS[cfg.adapter.method]
    model.train()
    for step in range(first, last + 1):
        model(images).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad / parameter.grad.norm().clamp(min=1e-8)
        method.after_step(model, step, cfg.adapter, lr=0.01)
        model.zero_grad()


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    return model.eval()(images)


def reloaded(task: Task, cfg: DictConfig, backbone: nn.Module, folder: Path, state: dict[str, Tensor]) -> nn.Module:
    save_adapter(task, state, folder)
    return load_adapter(backbone, folder, cfg)


@pytest.mark.parametrize("stop", [2, 5, STEPS - 1])  # before pruning starts, while it goes on, after its end
def test_adalora_resumes_where_it_was(images, stop) -> None:
    cfg, _, whole = begun("adapter=adalora")
    train(cfg, whole, images, 1, STEPS)
    cfg, _, first = begun("adapter=adalora")
    train(cfg, first, images, 1, stop)
    method = METHODS["adalora"]
    parameters, state = copy.deepcopy((adapter_parameters(first), method.state(first)))
    cfg, _, second = begun("adapter=adalora")
    load_adapter_parameters(second, parameters)
    method.load_state(second, state)
    train(cfg, second, images, stop + 1, STEPS)
    ended, resumed = adapter_parameters(whole), adapter_parameters(second)
    assert all(torch.equal(ended[name], resumed[name]) for name in ended)
    assert sum(int((ended[name] != 0).sum()) for name in ended if "lora_E" in name) == 4 * 16  # rank 4 in 16 layers


@pytest.mark.parametrize("selected", [1, 5, STEPS])
def test_adalora_saves_the_ranks_of_the_epoch_that_is_saved(images, selected, tmp_path) -> None:
    cfg, parts, model = begun("adapter=adalora")
    fresh = build(cfg).backbone.model
    train(cfg, model, images, 1, selected)
    state = copy.deepcopy(adapter_parameters(model))
    train(cfg, model, images, selected + 1, STEPS)  # prunes ranks that the selected epoch still has
    load_adapter_parameters(model, state)
    wanted = outputs(model, images)
    assert torch.allclose(outputs(reloaded(parts.task(model), cfg, fresh, tmp_path, state), images), wanted, atol=1e-6)


def test_adalora_adds_its_orthogonality_loss() -> None:
    _, _, model = begun("adapter=adalora")
    factors = {name: value for name, value in model.named_parameters() if "lora_A" in name or "lora_B" in name}
    method = METHODS["adalora"]
    assert float(method.loss(model)) > 0.1
    for value in factors.values():
        with torch.no_grad():
            value.copy_(nn.init.orthogonal_(torch.empty_like(value)))  # rows of P and columns of Q, both (., 6)
    assert float(method.loss(model)) < 1e-5
    method.loss(model).backward()
    assert all(value.grad is not None for value in factors.values())


def test_a_gate_of_sora_moves_to_zero_and_stops_there() -> None:
    cfg, _, model = begun("adapter=sora", "adapter.sparsity=2.0")
    gates = [value for name, value in model.named_parameters() if name.endswith(".gate")]
    before = [gate.detach().clone() for gate in gates]
    METHODS["sora"].after_step(model, 1, cfg.adapter, lr=0.1)
    for old, new in zip(before, gates, strict=True):
        assert torch.allclose(new, old.sign() * (old.abs() - 0.2).clamp(min=0))
    assert any(bool((gate == 0).any()) for gate in gates)


def test_sora_is_saved_as_the_lora_that_it_is(images, tmp_path) -> None:
    cfg, parts, model = begun("adapter=sora", "adapter.sparsity=20.0")
    fresh = build(cfg).backbone.model
    train(cfg, model, images, 1, 3)
    wanted, state = outputs(model, images), copy.deepcopy(adapter_parameters(model))
    saved = METHODS["sora"].saved(model, state)
    assert {name.rsplit(".", 2)[-2] for name in saved if "lora_" in name} == {"default"}  # lora_A.default.weight
    assert not any("gate" in name or "original" in name for name in saved)
    closed = sum(int((value == 0).all(dim=1).sum()) for name, value in saved.items() if "lora_A" in name)
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    assert closed == sum(4 - METHODS["sora"].open_ranks(layer) for layer in layers) > 0
    loaded = reloaded(parts.task(model), cfg, fresh, tmp_path, state)
    assert torch.allclose(outputs(loaded, images), wanted, atol=1e-6)
    unchanged = adapter_parameters(model)
    assert torch.equal(outputs(model, images), wanted)
    assert unchanged.keys() == state.keys() and all(torch.equal(unchanged[name], state[name]) for name in state)


# the only ones: the others leave the frozen weights as they are, and ΔW is measured against those
CHANGED = {"full", "pissa", "olora"}


@pytest.mark.parametrize(
    "adapter", sorted({*CHANGED, "lora", "dora", "rslora", "foura", "sora", "vera", "oft", "head"})
)
def test_which_weights_a_method_changes_is_known_before(adapter) -> None:
    cfg = composed(f"adapter={adapter}", "rank=4", "dataset.limit=20")
    backbone = build(cfg).backbone
    weights = {
        name: value.detach().clone() for name, value in backbone.model.named_parameters() if "fc1.weight" in name
    }
    model = attach(backbone, cfg, steps=STEPS)
    found = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in model.named_parameters()
    }
    reduced = any(not torch.equal(found[name], value) for name, value in weights.items())
    trained = any(found[name].requires_grad for name in weights)
    assert (reduced or trained) == METHODS[cfg.adapter.method].changes_weights(cfg.adapter) == (adapter in CHANGED)
