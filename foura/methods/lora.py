"""LoRA and DoRA by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.methods.method import Layers, Method, make, options_of

if TYPE_CHECKING:
    from peft import PeftConfig

# starts of LoRA that take the initial update out of the frozen weight
REDUCING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Lora(Method):
    """Hu et al., ICLR 2022 (arXiv 2106.09685); DoRA is Liu et al., ICML 2024 (arXiv 2402.09353)."""

    ranked = True

    def __init__(self, name: str, use_dora: bool = False) -> None:
        super().__init__(name)
        self.use_dora = use_dora

    def peft_type(self, adapter: DictConfig) -> str:
        return "LORA"

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        import peft

        fields = {"r": cfg.rank, "lora_alpha": cfg.alpha * cfg.rank, "lora_dropout": cfg.adapter.dropout}
        fields |= {"use_rslora": cfg.adapter.use_rslora, "use_dora": self.use_dora}
        return make(peft.LoraConfig, options_of(cfg), **fields, **common)

    def changes_weights(self, adapter: DictConfig) -> bool:
        return str(adapter.options.get("init_lora_weights", "")).startswith(REDUCING)

    def open_ranks(self, layer: Any) -> float | None:
        return float(layer.r["default"])
