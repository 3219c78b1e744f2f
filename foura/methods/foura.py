"""FouRA (the paper's method) from the config of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.errors import UserError
from foura.methods.method import Layers, Method, make, options_of

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

OF_GATES = ("gate_scope", "gate_form", "gate_sparsity", "gate_lr")
UNSEEDED = ("dct", "dft", "identity")  # transforms in which nothing is random
SCALED = "16-mixed"  # Lightning's precision with a GradScaler


class Foura(Method):
    """Every transform and gate of the library. `adapter.gate=frozen` trains with the adaptive gate, then freezes it."""

    ranked = True
    uses = (*Method.uses, "transform", "transform_seed", "gate", *OF_GATES)
    # the library's documented errors, so that a bug is not reported as a user's mistake; KeyError: PEFT, for a saved
    # module that the model lacks
    refusals = (ValueError, TypeError, RuntimeError, KeyError)

    def check(self, cfg: DictConfig, causal: bool) -> None:
        """Refuse a gate that looks at later tokens, a price that would be lost, and freezing where weights are sharded."""
        gated = cfg.adapter.gate != "none"
        if causal and gated and cfg.adapter.gate_scope == "sequence":
            raise UserError(
                "adapter.gate_scope=sequence looks at later tokens, which a causal language model must not: use token."
            )
        if cfg.adapter.gate_sparsity > 0 and cfg.trainer.precision == SCALED:
            raise UserError(
                f"adapter.gate_sparsity={cfg.adapter.gate_sparsity:g} would have no effect with trainer.precision={SCALED}, "
                "which scales the loss but not the price: use bf16-mixed or 32-true."
            )
        if cfg.adapter.gate == "frozen" and cfg.trainer.strategy == "fully_shard":
            raise UserError(
                f"trainer=fsdp splits weights over processes, and adapter={cfg.adapter.name} freezes its gate after "
                "training, which needs them whole: use trainer=ddp, or freeze later with foura export --freeze."
            )

    def used(self, adapter: DictConfig) -> tuple[str, ...]:
        unused = set() if adapter.gate != "none" else set(OF_GATES)
        if adapter.transform in UNSEEDED:
            unused.add("transform_seed")
        return tuple(key for key in self.uses if key not in unused)

    def peft_type(self, adapter: DictConfig) -> str:
        return "FOURA"

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        from foura.adapter import FouraConfig

        adapter = cfg.adapter
        return make(
            FouraConfig,
            options_of(cfg),
            r=cfg.rank,
            foura_alpha=cfg.alpha * cfg.rank,
            foura_dropout=adapter.dropout,
            transform=adapter.transform,
            transform_seed=adapter.transform_seed,
            gate="adaptive" if adapter.gate == "frozen" else adapter.gate,
            gate_scope=adapter.gate_scope,
            gate_form=adapter.gate_form,
            # each micro-batch pays it, and Lightning divides only the loss by their number
            gate_sparsity=adapter.gate_sparsity / cfg.trainer.accumulate_grad_batches,
            output_splits=dict(cfg.backbone.output_splits),
            use_rslora=adapter.use_rslora,
            **common,
        )

    def exports(self, adapter: DictConfig) -> bool:
        return True

    def after_training(self, model: nn.Module, adapter: DictConfig, batches: Callable[[], Iterable[Any]]) -> bool:
        """Freeze the gates on the training data, for `adapter.gate=frozen`."""
        if adapter.gate != "frozen":
            return False
        from foura.adapter import freeze_gates

        freeze_gates(model, batches())
        return True

    def tags(self, adapter: DictConfig) -> dict[str, str]:
        return {"transform": adapter.transform, "gate": adapter.gate}
