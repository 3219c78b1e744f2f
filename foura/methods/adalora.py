"""AdaLoRA (Zhang et al., ICLR 2023, arXiv 2303.10512) by PEFT: ranks are pruned over the run to an average budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.errors import UserError
from foura.methods.lora import Lora
from foura.methods.method import Layers, make, options_of

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

# what PEFT's allocator averages over steps to rate each rank
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLora(Lora):
    """ΔW = s P diag(λ) Q. Starts with 1.5 times the rank and prunes λ to the rank per layer on average."""

    shards = False
    starts = (True, False)

    def peft_type(self, adapter: DictConfig) -> str:
        return "ADALORA"

    def exports(self, adapter: DictConfig) -> bool:
        return False

    def first_rank(self, rank: int) -> int:
        return math.ceil(1.5 * rank)

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        """As in `Method`, with the pruning planned over the steps.

        Raises:
            UserError: also for a run of a single step, which leaves nothing to plan, and for use_rslora.
        """
        import peft

        if cfg.adapter.use_rslora:
            raise UserError(f"adapter.use_rslora=true: adapter={cfg.adapter.name} has no such scaling; leave it out.")
        if steps < 2:
            raise UserError(
                f"adapter={cfg.adapter.name} plans its pruning over the run and needs at least 2 steps; this run makes 1."
            )
        pruning = {"tinit": steps // 10, "tfinal": 3 * steps // 10, "deltaT": max(1, steps // 100), "total_step": steps}
        ranks = {"init_r": self.first_rank(cfg.rank), "target_r": cfg.rank}
        strength = {"lora_alpha": cfg.alpha * cfg.rank, "lora_dropout": cfg.adapter.dropout}
        return make(peft.AdaLoraConfig, options_of(cfg), **ranks, **strength, **pruning, **common)

    def loss(self, model: nn.Module) -> Tensor:
        """Weighted ‖PᵀP - I‖ and ‖QQᵀ - I‖, mean over factors (paper eq. 4).

        PEFT adds it only to models that return an object with a loss, and timm's do not.
        """
        import torch

        tuned: Any = model
        terms = []
        for name, factor in model.named_parameters():
            if factor.requires_grad and ("lora_A" in name or "lora_B" in name):
                gram = factor @ factor.T if "lora_A" in name else factor.T @ factor
                terms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return tuned.peft_config["default"].orth_reg_weight * torch.stack(terms).mean()

    def after_step(self, model: nn.Module, step: int, adapter: DictConfig, lr: float) -> None:
        """Rate the ranks by the gradients that are still there, and prune as planned."""
        tuned: Any = model
        tuned.base_model.update_and_allocate(step)

    def state(self, model: nn.Module) -> dict[str, Any]:
        tuned: Any = model
        averages = {name: getattr(tuned.base_model.rankallocator, name) for name in IMPORTANCE}
        return {**averages, "rank_pattern": tuned.peft_config["default"].rank_pattern}

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        tuned: Any = model
        for name in IMPORTANCE:
            setattr(tuned.base_model.rankallocator, name, state[name])
        tuned.peft_config["default"].rank_pattern = state.get("rank_pattern")  # 0.1.0 did not keep it

    def saved(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """All of them; the pattern by which PEFT drops closed ranks becomes that of this state, not of the last step."""
        tuned: Any = model
        values = {name.removeprefix("base_model.model."): value for name, value in state.items() if ".lora_E." in name}
        pattern = {name: (value != 0).flatten().tolist() for name, value in values.items()}
        closed = any(not kept for layer in pattern.values() for kept in layer)
        tuned.peft_config["default"].rank_pattern = pattern if closed else None
        return state

    def open_ranks(self, layer: Any) -> float | None:
        return float((layer.lora_E["default"] != 0).sum())
