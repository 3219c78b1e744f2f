"""A frozen model and the layers that adapters go on, for every family and every method."""

import re
from collections import Counter
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from foura.errors import UserError

LINEAR = (nn.Linear, Conv1D)  # Conv1D is GPT-2's name for a linear layer with its weight transposed


@dataclass(frozen=True)
class Backbone:
    """A frozen model and where to adapt it.

    Attributes:
        model: all parameters frozen.
        targets: names (or suffixes of names) of the linear layers that an adapter goes on.
        head: name of the output layer, which adapter=head trains.
        new: names of the modules without pretrained weights, which are trained with every adapter.
        body: name of the part that adapter=full trains; "" for the whole model.
    """

    model: nn.Module
    targets: list[str]
    head: str
    new: tuple[str, ...]
    body: str


def choose_targets(model: nn.Module, wanted: list[str] | None, usual: tuple[str, ...], head: str) -> list[str]:
    """The target modules: those wanted, else the usual ones that this model has, else all linear layers except the head.

    Raises:
        UserError: a wanted target that matches no linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]

    def matches(target: str) -> bool:
        return any(name == target or name.endswith(f".{target}") for name in linear)

    if wanted is not None:
        unmatched = [target for target in wanted if not matches(target)]
        if unmatched:
            raise UserError(
                f"target_modules {', '.join(unmatched)} match no linear layer; the model has: "
                f"{describe_linear_layers(model)}."
            )
        return list(wanted)
    return [target for target in usual if matches(target)] or [name for name in linear if name != head]


def target_layers(model: nn.Module, targets: list[str]) -> dict[str, nn.Module]:
    """{name: layer} of the linear layers whose name is, or ends in, one of the targets."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and any(name == t or name.endswith(f".{t}") for t in targets)
    }


def layer_size(layer: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def describe_linear_layers(model: nn.Module) -> str:
    """The linear layers of a model in one line, with numbered blocks folded: "blocks.*.attn.qkv (4), …"."""
    names = [name for name, module in model.named_modules() if isinstance(module, LINEAR)]
    patterns = Counter(re.sub(r"\b\d+\b", "*", name) for name in names)
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in patterns.items()) or "none"
