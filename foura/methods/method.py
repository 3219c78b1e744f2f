"""The record of an adapter method: what a run asks of it, from its PEFT config to its own loss term.

Imports neither torch nor PEFT at module level: configs are checked against these records before either is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from foura.errors import UserError, reason

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

Layers = Mapping[str, Any]  # {name: linear layer} that the adapter goes on

# fields of every PEFT config that the run sets itself, so that `adapter.options` may not
RESERVED = (
    *("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_version"),
    *("auto_mapping", "target_modules", "modules_to_save"),
)


class Method:
    """An adapter method, under the name that `adapter.method` selects it by.

    A subclass overrides what differs from these defaults. Instances hold settings only, no state of a run.

    Attributes:
        ranked: `rank` is the rank of every layer's update, so a layer must be able to hold it.
        shards: works where each process holds a part of every weight (trainer=fsdp).
        trained: the part of the backbone whose own weights are trained, "body" or "head"; None for an adapter of PEFT.
        uses: keys of the group `adapter` that have an effect, of those that not every method has a use for.
        refusals: exceptions with which its tuner refuses a model or a file; PEFT's own raise many kinds.
    """

    ranked = False
    shards = True
    trained: str | None = None
    uses: tuple[str, ...] = ("dropout", "use_rslora", "options")
    refusals: tuple[type[Exception], ...] = (Exception,)

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, cfg: DictConfig, causal: bool) -> None:
        """Refuse a config that this method cannot run.

        Args:
            cfg: the whole config.
            causal: the family's models must not look at later tokens.

        Raises:
            UserError: the config asks for something that the method does not have.
        """

    def used(self, adapter: DictConfig) -> tuple[str, ...]:
        """The keys in `uses` that have an effect with this config group."""
        return self.uses

    def peft_type(self, adapter: DictConfig) -> str:
        """PEFT's name of the method, as adapter_config.json holds it."""
        raise NotImplementedError(f"{self.name} is not an adapter of PEFT")

    def config(self, cfg: DictConfig, layers: Layers, steps: int, common: dict[str, Any]) -> PeftConfig:
        """The PEFT config for a run's config.

        Args:
            cfg: the whole config.
            layers: the layers that the adapter goes on.
            steps: number of optimizer steps of the run.
            common: fields that do not depend on the method: target_modules and, for a new head, modules_to_save.

        Raises:
            UserError: an option that the config does not have, or a value that it refuses.
        """
        raise NotImplementedError(f"{self.name} is not an adapter of PEFT")

    def prepare(self, model: nn.Module) -> None:
        """Change a model that PEFT has just wrapped, in place."""

    def sized_by_rank(self, adapter: DictConfig) -> bool:
        """True where a higher `rank` means more trained parameters, so that iso_parameters can search for a rank."""
        return self.ranked

    def first_rank(self, rank: int) -> int:
        """The rank that training starts with."""
        return rank

    def exports(self, adapter: DictConfig) -> bool:
        """True where its update can be written as an ordinary LoRA."""
        return False

    def changes_weights(self, adapter: DictConfig) -> bool:
        """True where the model's weights outside the adapter are not the backbone's: trained, or reduced at the start."""
        return False

    def loss(self, model: nn.Module) -> Tensor | None:
        """A scalar that is added to the task's training loss, or None."""
        return None

    def after_step(self, model: nn.Module, step: int, adapter: DictConfig, lr: float) -> None:
        """Called after each optimizer step, before the gradients are cleared.

        Args:
            model: the adapted model.
            step: number of the step, from 1.
            adapter: the config group.
            lr: the learning rate of the step.
        """

    def state(self, model: nn.Module) -> dict[str, Any]:
        """Training state besides parameters and buffers, for a checkpoint: tensors and plain values."""
        return {}

    def load_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""

    def after_training(self, model: nn.Module, adapter: DictConfig, batches: Callable[[], Iterable[Any]]) -> bool:
        """Change the selected model before it is tested; returns true if it must be validated and saved again.

        Args:
            model: the adapted model.
            adapter: the config group.
            batches: returns the training inputs, for a calibration.
        """
        return False

    def saved(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors to save.

        Args:
            model: the adapted model, whose parameters may be of a later epoch; its PEFT config is saved beside them.
            state: the `adapter_parameters` of the epoch to save.
        """
        return state

    def load_saved(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Load what was `saved`, under the names of PEFT's files, into a fresh adapter to train on from; in place."""
        import peft

        peft.set_peft_model_state_dict(model, state)

    def open_ranks(self, layer: Any) -> float | None:
        """Number of ranks that a trained layer uses; None for a method without ranks."""
        return None

    def tags(self, adapter: DictConfig) -> dict[str, str]:
        """Transform and gate, for the tags of the tracking store."""
        return {"transform": "none", "gate": "none"}


def options_of(cfg: DictConfig) -> dict[str, Any]:
    """`adapter.options` as a plain dict."""
    options: Any = OmegaConf.to_container(cfg.adapter.options, resolve=True)
    return options


def make(kind: type[PeftConfig], options: Mapping[str, Any], **fields: Any) -> PeftConfig:
    """A PEFT config from the method's own fields, overridden by the user's options.

    Raises:
        UserError: an option that is not a field of the config or that the run sets itself, or a value that is refused.
    """
    known = [name for name in field_names(kind) if name not in RESERVED]
    for name in options:
        if name in RESERVED:
            raise UserError(f"adapter.options.{name} is set by the run itself; leave it out.")
        if name not in known:
            raise UserError(
                f"adapter.options.{name}: {kind.__name__} has no such field. Its fields: {', '.join(known)}."
            )
    try:
        return kind(**{**fields, **options})
    except (TypeError, ValueError, AttributeError, NotImplementedError, ImportError) as error:  # each in its own way
        raise UserError(f"adapter.options: {kind.__name__} refuses them ({reason(error)}).") from error


def field_names(kind: type[PeftConfig]) -> list[str]:
    """The fields of a PEFT config that can be set."""
    return [spec.name for spec in dataclasses.fields(kind) if spec.init]
