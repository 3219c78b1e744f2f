"""Selective activation checkpointing, which keeps the results of some operations for the recomputation, changes nothing."""

import copy
from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from foura import FouraConfig

KEPT = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.cat.default]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(40, 48), nn.Linear(48, 40, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.selective = False

    def forward(self, x: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, KEPT)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts) if self.selective else block(x)
        return x


def steps(model: nn.Module, x: Tensor, selective: bool) -> list[Tensor]:
    """Gradients of the second of two steps: the first block of each folds."""
    model = copy.deepcopy(model)
    model.base_model.model.selective = selective
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # with larger steps gradients grow, and the rounding of threads with them
    optimizer = torch.optim.SGD(trained, lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return [parameter.grad for parameter in trained]


@pytest.mark.parametrize("transform", ["dct", "dft", "identity"])
@pytest.mark.parametrize("gate", ["none", "adaptive"])
@pytest.mark.parametrize("tokens", [5, 400])  # few and many: two ways of adding ΔW
def test_selective_checkpointing_changes_nothing(transform, gate, tokens) -> None:
    torch.manual_seed(0)
    fields = {"gate": gate, "gate_scope": "token", "transform": transform, "init_weights": False}
    config = FouraConfig(r=4, target_modules=["up", "down"], **fields)
    model = get_peft_model(Net().double(), config, autocast_adapter_dtype=False)
    x = torch.randn(3, tokens, 40, dtype=torch.float64) / 10
    torch.testing.assert_close(steps(model, x, True), steps(model, x, False))
