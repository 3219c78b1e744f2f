"""The record of a family: everything that the rest of the framework knows about one kind of backbone, its data and its task.

Importing a record imports neither torch nor a model's library: the config is checked against records first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.metrics import EPOCH, METRICS, Metric

if TYPE_CHECKING:
    from torch import nn

    from foura.backbone import Backbone
    from foura.data.run_data import RunData
    from foura.families.task import Task


@dataclass(frozen=True)
class Parts:
    """The parts of a run: a frozen model, its data, and `task`, which makes the training of the adapted model."""

    backbone: Backbone
    data: RunData
    task: Callable[[nn.Module], Task]


def as_lora(model: Any, out: Path) -> None:
    """Write the adapter of a whole model as an ordinary LoRA."""
    from foura.adapter import save_as_lora

    save_as_lora(model, out)


def save_pretrained(parts: Parts, model: Any, cfg: DictConfig, out: Path) -> None:
    """Write a merged model of transformers, with its tokenizer."""
    backbone: Any = parts.backbone
    model.save_pretrained(str(out))
    backbone.tokenizer.save_pretrained(str(out))


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of backbone with the data and the task that go with it.

    Attributes:
        name: the choice of `backbone=` and the value of `backbone.family`.
        sources: the choices of `dataset.source`. bundled: those among them that need no dataset.path.
        formats: {choice of `dataset.format`: keys of the metrics that its runs have}. The first format is the default. Runs
            are judged by the first metric, and any that every epoch has can select the epoch.
        options: keys of `backbone.options`, the settings that only this family has, for its model, data or task.
        uses: {condition: keys of the config that have an effect under it}, of the keys that not every run has a use for. The
            conditions are "" (always), a format, and those of `conditions`.
        causal: later tokens must not change earlier outputs, so a gate must not depend on them.
        build: from a whole config to data, backbone and task.
        save_merged: (parts, merged model, config, folder): writes the model for the library that it came from.
        save_as_lora: {form of `foura export --to`: (adapted model, folder)}.
        pretraining_loss: (parts, model, config): loss on the data that the bundled backbone was pretrained on; None for a
            family without a bundled backbone.
        pretrain: (folder or file; None for the package's own): remakes the weights of the bundled backbone; None likewise.
    """

    name: str
    sources: tuple[str, ...]
    bundled: tuple[str, ...]
    formats: Mapping[str, tuple[str, ...]]
    causal: bool
    build: Callable[[DictConfig], Parts]
    save_merged: Callable[[Parts, Any, DictConfig, Path], None]
    options: tuple[str, ...] = ()
    uses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    save_as_lora: Mapping[str, Callable[[Any, Path], None]] = field(default_factory=lambda: {"lora": as_lora})
    pretraining_loss: Callable[[Parts, nn.Module, DictConfig], float] | None = None
    pretrain: Callable[[Path | None], None] | None = None

    def used(self, cfg: DictConfig) -> set[str]:
        """The keys in `uses` that have an effect in a run of this config."""
        return {key for name in self.conditions(cfg) for key in self.uses.get(name, ())}

    def conditions(self, cfg: DictConfig) -> set[str]:
        """The conditions of `uses` that hold for this config."""
        backbone = cfg.backbone
        held = {
            "own data": cfg.dataset.source not in self.bundled,
            "bundled data": cfg.dataset.source in self.bundled,
            "own backbone": backbone.name != "embedded",
            "pretrained": backbone.pretrained is not False,
            "text encoder": backbone.text_encoder,
        }
        return {"", self.format(cfg.dataset.format), *(name for name, holds in held.items() if holds)}

    def format(self, chosen: str | None) -> str:
        """The format of the data's records: the chosen one, or the family's default."""
        return next(iter(self.formats)) if chosen in (None, "None") else str(chosen)

    def headline(self, chosen: str | None) -> Metric:
        """The metric that runs of this `dataset.format` are judged by, on test data."""
        return METRICS[self.formats[self.format(chosen)][0]]

    def curve(self, chosen: str | None) -> Metric:
        """The metric that is shown while a run trains: the headline, or the next one where that is measured at the end only."""
        return METRICS[self.selectable(chosen)[0]]

    def selectable(self, chosen: str | None) -> list[str]:
        """Keys of the metrics that every epoch has, any of which can select the epoch."""
        return [key for key in self.formats[self.format(chosen)] if EPOCH in METRICS[key].shown]
