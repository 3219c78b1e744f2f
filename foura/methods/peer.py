"""Any method that PEFT ships, from YAML alone: `adapter.method: peft`, `adapter.options.peft_type: OFT`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.errors import UserError
from foura.methods.method import Layers, Method, fields_of, make, options_of

if TYPE_CHECKING:
    from peft import PeftConfig

PARTIAL = ("rank_dropout", "module_dropout")  # dropouts that are not of the adapter's input


class Peer(Method):
    """A PEFT config made of `adapter.options`.

    rank, alpha and dropout go where PEFT's configs have them: the field `r` (unless its default is 0: other fields size
    the method then), `alpha` or `<method>_alpha` (alpha · rank, as for LoRA) and `<method>_dropout`. Options override them.

    Args:
        peft_type: of a method with a name of its own; None: options.peft_type says it.
    """

    def __init__(self, name: str, peft_type: str | None = None) -> None:
        super().__init__(name)
        self.fixed = peft_type

    def check(self, cfg: DictConfig, causal: bool) -> None:
        if self.fixed is None and not cfg.adapter.options.get("peft_type"):
            raise UserError("adapter.method=peft needs adapter.options.peft_type, PEFT's name of a method such as OFT.")

    def peft_type(self, adapter: DictConfig) -> str:
        return self.fixed or str(adapter.options.peft_type).upper()

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        kind = config_class(self.peft_type(cfg.adapter))
        options = {name: value for name, value in options_of(cfg).items() if name != "peft_type"}
        wanted = {"target_modules", *common} - set(fields_of(kind))
        if wanted:
            raise UserError(
                f"adapter={cfg.adapter.name}: {kind.__name__} has no {', '.join(sorted(wanted))}, so it cannot be put on "
                "chosen layers of this backbone."
            )
        return make(kind, options, **self.sizes(cfg, kind, layers), **common)

    def sizes(self, cfg: DictConfig, kind: type[PeftConfig], layers: Layers) -> dict[str, Any]:
        """The fields that `rank`, `alpha` and `adapter.dropout` set."""
        fields: dict[str, Any] = {}
        for name in fields_of(kind):
            if name == "r" and kind.r:  # type: ignore[attr-defined]
                fields[name] = cfg.rank
            elif name == "alpha" or name.endswith("_alpha"):
                fields[name] = cfg.alpha * cfg.rank
            elif name.endswith("_dropout") and name not in PARTIAL:
                fields[name] = cfg.adapter.dropout
        return fields


def config_class(peft_type: str) -> type[PeftConfig]:
    """PEFT's config class for its name of a method.

    Raises:
        UserError: PEFT has no such method; the sentence lists those that it has.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    by_name = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value != "FOURA"}
    if peft_type not in by_name:
        raise UserError(
            f"adapter.options.peft_type={peft_type} is not known to PEFT. Choose one of {', '.join(by_name)}."
        )
    return by_name[peft_type]
