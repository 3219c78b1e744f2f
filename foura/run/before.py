"""Measurements of the backbone before an adapter changes it, to compare with afterwards."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from foura.backbone import target_layers
from foura.errors import UserError
from foura.families import family_of
from foura.families.family import Parts
from foura.files import find, regular
from foura.methods import method_of
from foura.methods.attach import trained_modules


def check_forgetting(cfg: DictConfig) -> None:
    """Refuse evaluation.drift=true for a backbone whose pretraining data is not known, and a text of it that is not there.

    Raises:
        UserError: it is not the bundled backbone with its own weights, and no `evaluation.pretraining_text` is given; or
            what that names is not an ordinary file, or would not be used.
    """
    if cfg.evaluation.pretraining_text is not None:
        if cfg.evaluation.drift is False:
            raise UserError(
                "evaluation.pretraining_text has no effect with evaluation.drift=false; leave one of them out."
            )
        regular(find(cfg.evaluation.pretraining_text, "evaluation.pretraining_text"))
    if cfg.evaluation.drift and not _pretraining_known(cfg):
        raise UserError(
            "evaluation.drift=true needs the data that the backbone was pretrained on, which is known for the bundled "
            "backbones alone; leave it out, or for a language model name a text like it: evaluation.pretraining_text=FILE."
        )


def measures_forgetting(cfg: DictConfig) -> bool:
    """True if the run measures forgetting: as evaluation.drift says, or by default wherever it is cheap and means something.

    Where a text is named for it, in every run but tuning runs. Without one, neither in tuning runs, nor where the weights end
    in another precision than they begin in, which changes the loss too, or are sharded, which would take every process
    through another forward pass.
    """
    if cfg.evaluation.drift is not None:
        return cfg.evaluation.drift
    if cfg.evaluation.pretraining_text is not None:
        return cfg.evaluation.test
    trainer, backbone = cfg.trainer, cfg.backbone
    plain = trainer.strategy != "fully_shard" and trainer.precision not in ("16-true", "bf16-true", "64-true")
    whole = backbone.load_in is None and backbone.torch_dtype in (None, "float32")
    return plain and whole and cfg.evaluation.test and _pretraining_known(cfg)


def _pretraining_known(cfg: DictConfig) -> bool:
    bundled = cfg.backbone.name == "embedded" and cfg.backbone.pretrained is True
    named = cfg.evaluation.pretraining_text is not None
    return (bundled or named) and family_of(cfg).pretraining_loss is not None


class Before:
    """The backbone's state before training.

    Attributes:
        weights: {layer name: weight} of the adapted layers, where the method changes the frozen weights; else empty.
        parameters: {parameter name: value} of the same, and of all that a bare model is about to train.
        loss: on its pretraining data; None where forgetting is not measured.
    """

    def __init__(self, parts: Parts, cfg: DictConfig) -> None:
        backbone, method = parts.backbone, method_of(cfg)
        layers: dict[str, Any] = {}
        if method.changes_weights(cfg.adapter):
            layers = target_layers(backbone.model, backbone.targets)
        self.weights: dict[str, Tensor] = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        self.parameters = {f"{name}.weight": weight for name, weight in self.weights.items()}
        for name in trained_modules(backbone, method.trained) if method.trained else ():
            for key, value in backbone.model.get_submodule(name).named_parameters(prefix=name):
                if key not in self.parameters:
                    self.parameters[key] = value.detach().clone()
        self.loss = pretraining_loss(parts, backbone.model, cfg) if measures_forgetting(cfg) else None

    def forgetting(self, parts: Parts, model: nn.Module, cfg: DictConfig) -> dict[str, float]:
        """{"drift/loss": loss on the pretraining data, after minus before}; {} if it is not measured."""
        return {} if self.loss is None else {"drift/loss": pretraining_loss(parts, model, cfg) - self.loss}


@torch.no_grad()
def pretraining_loss(parts: Parts, model: nn.Module, cfg: DictConfig) -> float:
    """Loss of a (possibly adapted) backbone on its pretraining data, or on text like it, in the unit of its task.

    The state of the random generators stays as it was, so that measuring changes no other number.
    """
    training, measure = model.training, family_of(cfg).pretraining_loss
    assert measure is not None  # see check_forgetting
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):  # a head that is made for this draws its first weights
            return measure(parts, model, cfg)
    finally:
        model.train(training)
