"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) by PEFT, with its variants that share its config.

DoRA (Liu et al., ICML 2024, arXiv 2402.09353) is a method of its own; rsLoRA (arXiv 2312.03732) is `adapter.use_rslora`;
PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) are values of `adapter.options.init_lora_weights`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.errors import UserError
from foura.methods.method import Layers, Method, make, options_of

if TYPE_CHECKING:
    from peft import PeftConfig

# starts that take the initial update out of the frozen weight: W becomes W - s B A, so that the output stays the same
REDUCING = ("pissa", "olora")


class Lora(Method):
    """ΔW = s B A, with s = alpha, or alpha · sqrt(rank) with use_rslora.

    Attributes:
        starts: values of `init_lora_weights`. A run, its resumption and its export each make the start anew, so it must
            follow from the weights or from the seed; PEFT has others, which need training data or random projections.
    """

    ranked = True
    starts: tuple[bool | str, ...] = (True, False, "gaussian", "orthogonal", "mica", *REDUCING)

    def __init__(self, name: str, use_dora: bool = False) -> None:
        super().__init__(name)
        self.use_dora = use_dora

    def check(self, cfg: DictConfig, causal: bool) -> None:
        start = cfg.adapter.options.get("init_lora_weights", True)
        if start not in self.starts:
            raise UserError(
                f"adapter.options.init_lora_weights={start} is not a start that adapter={cfg.adapter.name} can repeat when "
                f"the run is resumed or exported; choose one of {', '.join(map(str, self.starts))}."
            )

    def peft_type(self, adapter: DictConfig) -> str:
        return "LORA"

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        import peft

        fields = {"r": cfg.rank, "lora_alpha": cfg.alpha * cfg.rank, "lora_dropout": cfg.adapter.dropout}
        fields |= {"use_rslora": cfg.adapter.use_rslora, "use_dora": self.use_dora}
        return make(peft.LoraConfig, options_of(cfg), **fields, **common)

    def exports(self, adapter: DictConfig) -> bool:
        return not self.use_dora and not self.changes_weights(adapter)

    def changes_weights(self, adapter: DictConfig) -> bool:
        return adapter.options.get("init_lora_weights") in REDUCING

    def open_ranks(self, layer: Any) -> float | None:
        return float(layer.r["default"])
