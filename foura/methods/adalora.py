"""AdaLoRA by PEFT (Zhang et al., ICLR 2023, arXiv 2303.10512): ranks are pruned over the run to an average budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.errors import UserError
from foura.methods.method import Layers, Method, make, options_of

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

# what PEFT's allocator averages over steps to rate each rank
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLora(Method):
    """Starts with 1.5 times the rank and prunes to the rank per layer on average, planned over the steps of the run."""

    ranked = True
    shards = False

    def peft_type(self, adapter: DictConfig) -> str:
        return "ADALORA"

    def first_rank(self, rank: int) -> int:
        return math.ceil(1.5 * rank)

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        import peft

        if steps < 2:
            raise UserError(
                "adapter=adalora plans its pruning over the run and needs at least 2 steps; this run makes 1."
            )
        pruning = {"tinit": steps // 10, "tfinal": 3 * steps // 10, "deltaT": max(1, steps // 100), "total_step": steps}
        ranks = {"init_r": self.first_rank(cfg.rank), "target_r": cfg.rank}
        strength = {"lora_alpha": cfg.alpha * cfg.rank, "lora_dropout": cfg.adapter.dropout}
        return make(peft.AdaLoraConfig, options_of(cfg), **ranks, **strength, **pruning, **common)

    def loss(self, model: nn.Module) -> Tensor:
        """‖PᵀP - I‖ over the factors; PEFT adds it only to models that return an object with a loss, and timm's do not."""
        import torch

        tuned: Any = model
        terms = []
        for name, factor in model.named_parameters():
            if factor.requires_grad and ("lora_A" in name or "lora_B" in name):
                gram = factor @ factor.T if "lora_A" in name else factor.T @ factor
                terms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return tuned.peft_config["default"].orth_reg_weight * torch.stack(terms).mean()

    def after_step(self, model: nn.Module, step: int, adapter: DictConfig, lr: float) -> None:
        tuned: Any = model
        tuned.base_model.update_and_allocate(step)

    def state(self, model: nn.Module) -> dict[str, Any]:
        tuned: Any = model
        return {name: getattr(tuned.base_model.rankallocator, name) for name in IMPORTANCE}

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        tuned: Any = model
        for name, value in state.items():
            setattr(tuned.base_model.rankallocator, name, value)

    def open_ranks(self, layer: Any) -> float | None:
        return float((layer.lora_E["default"] != 0).sum())
