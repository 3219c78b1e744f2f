"""The record of a family: all that the rest of the framework has to know about one kind of backbone, its data and its task.

Light on purpose: the config is checked against these records before torch is imported. What a family builds is imported
when it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.metrics import EPOCH, METRICS, Metric

if TYPE_CHECKING:
    from torch import nn

    from foura.backbone import Backbone
    from foura.families.task import Task


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        data: has train, train_eval, validation, test, sizes, fingerprint and collate (None for PyTorch's own).
        task: from the adapted model to its training.
    """

    backbone: Backbone
    data: Any
    task: Callable[[nn.Module], Task]


@dataclass(frozen=True)
class Family:
    """One kind of backbone with the data and the task that go with it.

    Attributes:
        name: the choice of `backbone=` and the value of `backbone.family`.
        sources: the choices of `dataset.source`. bundled: those among them that need no dataset.path.
        formats: {choice of `dataset.format`: keys of the metrics that its runs have}; the first format is the default, and
            the first metric is the one that a run is judged by.
        causal: later tokens must not change earlier outputs, so that a gate may not look at them.
        build: data, backbone and task of a whole config.
        save_merged: (parts, merged model, config, folder): the model for the stack that it came from.
        save_as_lora: {form of `foura export --to`: (adapted model, folder)}.
        pretraining_loss: (parts, model, config): loss on the data that the bundled backbone was pretrained on.
        pretrain: (folder or file; None for the package's own): remakes the bundled backbone's weights.
    """

    name: str
    sources: tuple[str, ...]
    bundled: tuple[str, ...]
    formats: Mapping[str, tuple[str, ...]]
    causal: bool
    build: Callable[[DictConfig], Parts]
    save_merged: Callable[[Parts, Any, DictConfig, Path], None]
    save_as_lora: Mapping[str, Callable[[Any, Path], None]]
    pretraining_loss: Callable[[Parts, nn.Module, DictConfig], float]
    pretrain: Callable[[Path | None], None]

    def format(self, chosen: str | None) -> str:
        """The format of the data's records: the chosen one, or the family's default."""
        return next(iter(self.formats)) if chosen in (None, "None") else str(chosen)

    def headline(self, chosen: str | None) -> Metric:
        """The metric that a run of this `dataset.format` is judged by, on test data."""
        return METRICS[self.formats[self.format(chosen)][0]]

    def curve(self, chosen: str | None) -> Metric:
        """The metric that is shown while a run trains: the headline, or the next one where that is measured at the end only."""
        return METRICS[self.selectable(chosen)[0]]

    def selectable(self, chosen: str | None) -> list[str]:
        """Keys of the metrics that every epoch has, any of which can select the epoch."""
        return [key for key in self.formats[self.format(chosen)] if EPOCH in METRICS[key].shown]
