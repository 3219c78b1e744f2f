"""SoRA (Ding et al., EMNLP 2023) on PEFT's LoRA: a trained gate on each rank, kept sparse by a proximal step.

ΔW = s · B diag(g) A. After each optimizer step g is soft-thresholded, g <- sign(g) max(|g| - η λ, 0), so that ranks close
for good, for every input alike; the paper compares FouRA's input-dependent gate with it (sec. 4.2, Fig. 5).
"""

from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize


class RankGates(nn.Module):
    """g in diag(g) A, as a parametrization of A (r, in_features); starts as N(0, 1), as the authors' code does."""

    def __init__(self, r: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(r))

    def forward(self, A: Tensor) -> Tensor:
        return self.gate.unsqueeze(-1) * A


def add_gates(model: nn.Module) -> None:
    """Put gates on every LoRA layer of a PEFT model."""
    for layer in list(model.modules()):
        if isinstance(layer, LoraLayer):
            down = layer.lora_A["default"]
            parametrize.register_parametrization(down, "weight", RankGates(layer.r["default"]))


def gates(model: nn.Module) -> Iterator[nn.Parameter]:
    return (module.gate for module in model.modules() if isinstance(module, RankGates))


@torch.no_grad()
def shrink(model: nn.Module, threshold: float) -> None:
    """The proximal step: every gate moves towards zero by `threshold`, and stays there when it arrives."""
    for gate in gates(model):
        gate.copy_(nn.functional.softshrink(gate, threshold))


def fold(model: nn.Module) -> None:
    """Make the gates part of A: what is left is an ordinary LoRA, with rows of zeros where ranks are closed."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
