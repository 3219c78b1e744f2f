"""The trained gates of SoRA (arXiv 2311.11696) as a parametrization of LoRA's A."""

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize


def scaled_rows(A: Tensor, gate: Tensor) -> Tensor:
    """diag(g) A for A of any number of dimensions."""
    return gate.reshape(-1, *[1] * (A.dim() - 1)) * A


class RankGates(nn.Module):
    """A (r, in_features), or (r, in_channels, *kernel), -> diag(g) A, with the trained g (r,) drawn from N(0, 1), as in the
    authors' code.
    """

    def __init__(self, r: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(r))

    def forward(self, A: Tensor) -> Tensor:
        return scaled_rows(A, self.gate)


def add_gates(model: nn.Module) -> None:
    """Put gates on every LoRA layer of a PEFT model, in place."""
    for layer in list(model.modules()):
        if isinstance(layer, LoraLayer):
            down = layer.lora_A["default"]
            parametrize.register_parametrization(down, "weight", RankGates(layer.r["default"]))
