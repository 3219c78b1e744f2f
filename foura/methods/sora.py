"""SoRA (Ding et al., EMNLP 2023, arXiv 2311.11696) on PEFT's LoRA: a trained gate per rank, kept sparse by a proximal step.

ΔW = s B diag(g) A. After each optimizer step g is soft-thresholded, g <- sign(g) max(|g| - η λ, 0), which closes ranks
for every input alike; the FouRA paper compares its input-dependent gate with it (sec. 4.2, Fig. 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.methods.lora import Lora

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAINED = ".parametrizations.weight.original"  # A, where torch keeps a parametrized weight
GATE = ".parametrizations.weight.0.gate"


class Sora(Lora):
    """LoRA with `RankGates` on A; it is saved with the gates multiplied into A, as an ordinary LoRA."""

    shards = False
    uses = (*Lora.uses, "sparsity")
    starts = (True, "gaussian")  # the gates are random at the start, so B has to be zero

    def prepare(self, model: nn.Module) -> None:
        from foura.methods.rank_gates import add_gates

        add_gates(model)

    def after_step(self, model: nn.Module, step: int, adapter: DictConfig, lr: float) -> None:
        """The proximal step: every gate moves towards zero by lr · sparsity and stops at zero."""
        import torch

        with torch.no_grad():
            for gate in _gates(model):
                gate.copy_(torch.nn.functional.softshrink(gate, lr * adapter.sparsity))

    def saved(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of an ordinary LoRA: diag(g) A instead of g and A, with rows of zeros where ranks are closed."""
        from foura.methods.rank_gates import scaled_rows

        folded = {name: tensor for name, tensor in state.items() if not name.endswith((TRAINED, GATE))}
        for name, tensor in state.items():
            if name.endswith(TRAINED):
                layer = name.removesuffix(TRAINED)
                folded[f"{layer}.weight"] = scaled_rows(tensor, state[layer + GATE])
        return folded

    def load_saved(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """The saved diag(g) A becomes A, and every gate one."""
        import torch

        super().load_saved(model, {name: tensor for name, tensor in state.items() if ".lora_A." not in name})
        unfolded: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if ".lora_A." in name:
                layer = name.removesuffix(".weight") + ".default"
                unfolded |= {layer + TRAINED: tensor, layer + GATE: torch.ones(len(tensor))}
        model.load_state_dict(unfolded, strict=False)

    def open_ranks(self, layer: Any) -> float | None:
        closed = sum(int((gate == 0).sum()) for gate in _gates(layer))
        return float(layer.r["default"] - closed)


def _gates(model: nn.Module) -> Iterator[Tensor]:
    from foura.methods.rank_gates import RankGates

    return (module.gate for module in model.modules() if isinstance(module, RankGates))
