"""Measurements of the backbone before an adapter changes it, to compare with afterwards."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from foura.backbone import target_layers
from foura.errors import UserError
from foura.families import family_of
from foura.families.family import Parts
from foura.methods import method_of


def check_forgetting(cfg: DictConfig) -> None:
    """Refuse evaluation.drift=true for a backbone whose pretraining data is not known.

    Raises:
        UserError: it is not the bundled backbone with its own weights.
    """
    if cfg.evaluation.drift and (cfg.backbone.name != "embedded" or cfg.backbone.pretrained is not True):
        raise UserError(
            "evaluation.drift=true needs the data that the backbone was pretrained on, which is known for the bundled "
            "backbones alone; leave it out."
        )


class Before:
    """The backbone's state before training.

    Attributes:
        weights: {layer name: weight} of the adapted layers, where the method changes the frozen weights; else empty.
        loss: on its pretraining data; None if forgetting is not measured.
    """

    def __init__(self, parts: Parts, cfg: DictConfig) -> None:
        self.weights: dict[str, Tensor] = {}
        if method_of(cfg).changes_weights(cfg.adapter):
            layers: dict[str, Any] = target_layers(parts.backbone.model, parts.backbone.targets)
            self.weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        self.loss = pretraining_loss(parts, parts.backbone.model, cfg) if cfg.evaluation.drift else None

    def forgetting(self, parts: Parts, model: nn.Module, cfg: DictConfig) -> dict[str, float]:
        """{"drift/loss": loss on the pretraining data, after minus before}; {} if it is not measured."""
        return {} if self.loss is None else {"drift/loss": pretraining_loss(parts, model, cfg) - self.loss}


@torch.no_grad()
def pretraining_loss(parts: Parts, model: nn.Module, cfg: DictConfig) -> float:
    """Loss of a (possibly adapted) bundled backbone on its pretraining data, in the unit of its task."""
    training = model.training
    model.eval()
    try:
        return family_of(cfg).pretraining_loss(parts, model, cfg)
    finally:
        model.train(training)
