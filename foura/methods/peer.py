"""Any method that PEFT ships, from YAML alone: `adapter.method: peft`, `adapter.options.peft_type: OFT`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.errors import UserError
from foura.methods.method import Layers, Method, field_names, make, options_of

if TYPE_CHECKING:
    from peft import PeftConfig

# types that PEFT can put on these layers, but that need more than batches and a loss to train
UNFIT = {
    "ADALORA": "is adapter.method=adalora here, which prunes its ranks along the run",
    "ADAPTION_PROMPT": "puts prompts into attention modules, not updates on linear layers",
    "POLY": "needs the number of a task with every batch",
    "SHADOW": "adapts whole decoder blocks, not linear layers",
    "TRAINABLE_TOKENS": "trains rows of an embedding, not linear layers",
}
# types whose number of parameters falls as r grows: RandLoRA has min(in, out) / r bases
SHRINKING = ("RANDLORA",)


class Peer(Method):
    """A PEFT config made of `adapter.options`, each of which is a field of it.

    Three fields follow the run's config unless an option sets them:

    - `r` is `rank`, where its default in PEFT is a rank (OFT's default is 0: there it is a number of blocks);
    - `alpha` or `<type>_alpha` is alpha · rank, as for LoRA, so that the scaling alpha / r is `alpha`;
    - `<type>_dropout` is `adapter.dropout`.

    What `r` means is up to the method: SHiRA trains r · (in + out) entries, HiRA's update is W ∘ (B A), and RandLoRA has
    the fewer parameters the larger it is.

    Args:
        name: the choice of `adapter.method`.
        peft_type: PEFT's name of the method, for one that has a name of its own; None: options.peft_type gives it.
    """

    def __init__(self, name: str, peft_type: str | None = None) -> None:
        super().__init__(name)
        self.fixed = peft_type

    def check(self, cfg: DictConfig, causal: bool) -> None:
        if self.fixed:
            return
        if not cfg.adapter.options.get("peft_type"):
            raise UserError("adapter.method=peft needs adapter.options.peft_type, PEFT's name of a method such as OFT.")
        unfit = UNFIT.get(self.peft_type(cfg.adapter))
        if unfit:
            raise UserError(f"adapter.options.peft_type={cfg.adapter.options.peft_type} {unfit}; choose another.")

    def peft_type(self, adapter: DictConfig) -> str:
        return self.fixed or str(adapter.options.peft_type).upper()

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        kind = config_class(self.peft_type(cfg.adapter))
        lacking = [name for name in common if name not in field_names(kind)]
        if lacking:
            raise UserError(
                f"adapter={cfg.adapter.name}: {kind.__name__} has no {', '.join(lacking)}, so it cannot go on the linear "
                "layers of this backbone."
            )
        options = {name: value for name, value in options_of(cfg).items() if self.fixed or name != "peft_type"}
        return make(kind, options, **self.sizes(cfg, kind, layers), **common)

    def sizes(self, cfg: DictConfig, kind: type[PeftConfig], layers: Layers) -> dict[str, Any]:
        """The fields that `rank`, `alpha` and the adapter's keys set.

        Raises:
            UserError: adapter.dropout or adapter.use_rslora, where the method has neither.
        """
        prefix, known = self.peft_type(cfg.adapter).lower(), field_names(kind)
        values = {"r": cfg.rank} if has_rank(kind) else {}
        values |= dict.fromkeys(("alpha", f"{prefix}_alpha"), cfg.alpha * cfg.rank)
        for key, field in (("dropout", f"{prefix}_dropout"), ("use_rslora", "use_rslora")):
            values[field] = cfg.adapter[key]
            if cfg.adapter[key] and field not in known:
                raise UserError(
                    f"adapter.{key}={cfg.adapter[key]}: {kind.__name__} has no {field}, so adapter={cfg.adapter.name} "
                    "would train without it; leave it out."
                )
        return {name: value for name, value in values.items() if name in known}

    def sized_by_rank(self, adapter: DictConfig) -> bool:
        peft_type = self.peft_type(adapter)
        return has_rank(config_class(peft_type)) and peft_type not in SHRINKING and "r" not in adapter.options


def config_class(peft_type: str) -> type[PeftConfig]:
    """PEFT's config class for its name of a method.

    Raises:
        UserError: PEFT has no such method; the message lists those that it has.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    by_name = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value != "FOURA"}
    if peft_type not in by_name:
        raise UserError(
            f"adapter.options.peft_type={peft_type} is not known to PEFT. Choose one of "
            f"{', '.join(name for name in by_name if name not in UNFIT)}."
        )
    return by_name[peft_type]


def has_rank(kind: type[PeftConfig]) -> bool:
    """True if the config's `r` is a rank: it has one, whose default is neither None nor 0."""
    return bool(getattr(kind, "r", None))
