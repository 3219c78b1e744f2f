"""The trained gates of SoRA (arXiv 2311.11696) as a parametrization of LoRA's A."""

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize


class RankGates(nn.Module):
    """A (r, in_features) -> diag(g) A, with the trained g (r,) drawn from N(0, 1), as in the authors' code."""

    def __init__(self, r: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(r))

    def forward(self, A: Tensor) -> Tensor:
        return self.gate.unsqueeze(-1) * A


def add_gates(model: nn.Module) -> None:
    """Put gates on every LoRA layer of a PEFT model, in place."""
    for layer in list(model.modules()):
        if isinstance(layer, LoraLayer):
            down = layer.lora_A["default"]
            parametrize.register_parametrization(down, "weight", RankGates(layer.r["default"]))
