"""The record of an adapter method: what a run asks of it, from its PEFT config to its own loss term.

Light on purpose: the config is checked against these records before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

Layers = Mapping[str, Any]  # {name: linear layer} that the adapter goes on


class Method:
    """An adapter method under the name that `adapter.method` has for it. Subclasses say where they differ from LoRA's ways.

    Attributes:
        ranked: `rank` is the rank of every layer's update, which a layer must be able to hold.
        shards: works where each process holds a part of every weight (trainer=fsdp).
        exports: its update can be written as an ordinary LoRA.
        trained: the part of a backbone that is trained as it is, "body" or "head"; None for an adapter of PEFT.
        refusals: exceptions with which its tuner refuses a model or a file; PEFT's own raise many kinds.
    """

    ranked = False
    shards = True
    exports = False
    trained: str | None = None
    refusals: tuple[type[Exception], ...] = (Exception,)

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, cfg: DictConfig, causal: bool) -> None:
        """Refuse a whole config that this method cannot run.

        Args:
            causal: the family's models must not look at later tokens.

        Raises:
            UserError: the config asks for something that the method does not have.
        """

    def peft_type(self, adapter: DictConfig) -> str:
        """PEFT's name of the method, which adapter_config.json holds."""
        raise NotImplementedError(f"{self.name} is not an adapter of PEFT")

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        """The PEFT config for a run's config.

        Args:
            layers: the layers that the adapter goes on. steps: optimizer steps of the run.
            common: fields that all PEFT configs have (target_modules, modules_to_save).
        """
        raise NotImplementedError(f"{self.name} is not an adapter of PEFT")

    def prepare(self, model: nn.Module) -> None:
        """Change a model that PEFT has just wrapped."""

    def first_rank(self, rank: int) -> int:
        """The rank that training starts with."""
        return rank

    def changes_weights(self, adapter: DictConfig) -> bool:
        """The frozen weights are not those of the backbone: trained, or reduced by what the adapter starts with."""
        return False

    def loss(self, model: nn.Module) -> Tensor | None:
        """A term that is added to the task's loss."""
        return None

    def after_step(self, model: nn.Module, step: int, adapter: DictConfig, lr: float) -> None:
        """Runs between the optimizer's step and the clearing of the gradients.

        Args:
            step: number of the step, from 1. lr: the learning rate that it had.
        """

    def state(self, model: nn.Module) -> dict[str, Any]:
        """Training state beside parameters and buffers, for a checkpoint."""
        return {}

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""

    def after_training(self, model: nn.Module, adapter: DictConfig, batches: Callable[[], Iterable[Any]]) -> bool:
        """Change the trained model before it is tested; true if its validation metrics have to be measured again.

        Args:
            batches: makes the training inputs, for a calibration.
        """
        return False

    def saved(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors to save, from those that training changes."""
        return state

    def open_ranks(self, layer: Any) -> float | None:
        """Ranks that a trained layer uses; None for a method without ranks."""
        return None

    def tags(self, adapter: DictConfig) -> dict[str, str]:
        """Transform and gate, for the tags of the tracking store."""
        return {"transform": "none", "gate": "none"}


def options_of(cfg: DictConfig) -> dict[str, Any]:
    """`adapter.options` as a plain dict."""
    options: Any = OmegaConf.to_container(cfg.adapter.options, resolve=True)
    return options


def make(kind: type[PeftConfig], options: Mapping[str, Any], **fields: Any) -> PeftConfig:
    """A PEFT config from the method's own fields, which the user's options override.

    Raises:
        UserError: an option that is not a field of the config, or a value that it refuses.
    """
    from foura.errors import UserError, reason

    known = fields_of(kind)
    for name in options:
        if name not in known:
            raise UserError(
                f"adapter.options.{name}: {kind.__name__} has no such field. Its fields: {', '.join(known)}."
            )
    try:
        return kind(**{**fields, **options})
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:  # each config checks in its own way
        raise UserError(f"adapter.options: {kind.__name__} refuses them ({reason(error)}).") from error


def fields_of(kind: type[PeftConfig]) -> list[str]:
    """The names of a PEFT config's fields that a user may set."""
    import dataclasses

    return [spec.name for spec in dataclasses.fields(kind) if spec.init and spec.name != "peft_type"]
