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
    from torch import Tensor, nn

    from foura.backbone import Backbone
    from foura.data.run_data import RunData
    from foura.families.task import Task


@dataclass(frozen=True)
class Parts:
    """The parts of a run: a frozen model, its data, and `task`, which makes the training of the adapted model."""

    backbone: Backbone
    data: RunData
    task: Callable[[nn.Module], Task]


def as_lora(model: Any, out: Path, per_layer_ranks: bool) -> str:
    """Write the adapter of a whole model as an ordinary LoRA; returns who reads it."""
    from foura.adapter import save_as_lora

    return save_as_lora(model, out, per_layer_ranks=per_layer_ranks)


def save_pretrained(backbone: Any, model: Any, cfg: DictConfig, out: Path) -> None:
    """Write a merged model of transformers, with its tokenizer."""
    model.save_pretrained(str(out))
    backbone.tokenizer.save_pretrained(str(out))


def load_pretrained(backbone: Any, cfg: DictConfig, folder: Path) -> nn.Module:
    """Load what `save_pretrained` wrote."""
    loaded: nn.Module = type(backbone.model).from_pretrained(str(folder), dtype="auto", use_safetensors=True)
    return loaded


def example_tokens(backbone: Any) -> dict[str, Tensor]:
    """Token ids (2, 8) for a model of transformers, any that it has embeddings for."""
    import torch

    size = backbone.model.get_input_embeddings().num_embeddings
    ids = torch.randint(size, (2, 8), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def saved_outputs(hollow: Backbone, saved: Mapping[str, Tensor]) -> int:
    """Number of outputs of the head that a run has trained.

    Args:
        hollow: the run's backbone with a head of one output.
        saved: {name: tensor} of what the run has saved, by the names of the backbone.
    """
    for name, tensor in hollow.model.get_submodule(hollow.head).state_dict().items():
        trained = saved.get(f"{hollow.head}.{name}")
        if trained is not None and trained.dim() and trained.shape[1:] == tensor.shape[1:] and len(trained) != 1:
            return len(trained)
    return 1


def untrained(cfg: DictConfig) -> DictConfig:
    """The config group of a backbone whose weights are not loaded, to look at its layers."""
    hollow = cfg.copy()
    hollow.pretrained = False
    return hollow


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
            conditions are "" (always), a format, "dataset=SOURCE", and the others of `conditions`. A family that lists none is
            asked for none.
        causal: later tokens must not change earlier outputs, so a gate must not depend on them.
        bundled_model: the bundled backbone in words. bundled_on: what it was pretrained on.
        inference: Python that uses an adapter on the user's own copy of its backbone; BASE, ADAPTER, LORA and CLASSES
            stand for the model, the adapter's folder, that of an exported LoRA, and the number of classes.
        build: from a whole config to data, backbone and task.
        save_merged: (backbone, merged model, config, folder): writes the model for the library that it came from.
        load_merged: (backbone, config, folder): loads what save_merged wrote, as that library does. None: a merged export
            is not compared with the adapted model.
        save_as_lora: {form of `foura export --to`: (adapted model, folder, per_layer_ranks)}; returns who reads the file.
        backbone: (config, {name: tensor} that a run has saved): the run's backbone, built without its data, for exports.
            None: `build` is used.
        example: (backbone): a small input of the model, as keyword arguments, from no data.
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
    save_merged: Callable[[Any, Any, DictConfig, Path], None]
    load_merged: Callable[[Any, DictConfig, Path], nn.Module] | None = None
    bundled_model: str = "bundled model"
    bundled_on: str = "its own data"
    inference: str = ""
    options: tuple[str, ...] = ()
    uses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    save_as_lora: Mapping[str, Callable[[Any, Path, bool], str]] = field(default_factory=lambda: {"lora": as_lora})
    backbone: Callable[[DictConfig, Mapping[str, Tensor]], Backbone] | None = None
    example: Callable[[Any], dict[str, Tensor]] | None = None
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
        data = f"dataset={cfg.dataset.source}"
        return {"", data, self.format(cfg.dataset.format), *(name for name, holds in held.items() if holds)}

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
