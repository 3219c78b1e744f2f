"""A frozen model and the layers that adapters go on, for every family and every method."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from foura.errors import UserError

NUMBERED = r"(^|\.)\d+\."  # in the name of a layer that is inside a member of a list of modules
LINEAR = (nn.Linear, Conv1D)  # Conv1D is GPT-2's name for a linear layer with its weight transposed


def is_linear(layer: nn.Module) -> bool:
    """True for a linear layer, quantised ones too."""
    return isinstance(layer, LINEAR)


def mixes_channels(layer: nn.Module) -> bool:
    """True for a layer that adapters go on: linear, or a convolution in which every output sees every input channel.

    Subclasses of nn.Conv2d compute something else (a standardised weight, another padding), which no update can be merged
    into.
    """
    return is_linear(layer) or (type(layer) is nn.Conv2d and layer.groups == 1)


@dataclass(frozen=True)
class Backbone:
    """A frozen model and where to adapt it.

    Attributes:
        model: all parameters frozen.
        targets: names (or suffixes of names) of the layers that an adapter goes on.
        head: name of the output layer, which adapter=head trains.
        new: names of the modules without pretrained weights, which are trained with every adapter.
        body: name of the part that adapter=full trains; "" for the whole model.
    """

    model: nn.Module
    targets: list[str]
    head: str
    new: tuple[str, ...]
    body: str


def choose_targets(
    model: nn.Module,
    wanted: list[str] | None,
    usual: tuple[str, ...],
    head: str,
    blocks: bool = False,
    convolutions: bool = False,
    apart: Sequence[str] = (),
) -> list[str]:
    """The target modules: those wanted, else the usual ones that this model has, else all linear layers except the head.

    Args:
        head: name of the output layer.
        blocks: every linear layer of the model's blocks is a target, under its usual name where it has one.
        convolutions: so is every convolution of the blocks that mixes channels; a model without blocks counts as one.
        apart: names of modules whose layers are no targets.

    Raises:
        UserError: a wanted target that matches no layer that an adapter can go on.
    """
    fits = mixes_channels if convolutions or wanted is not None else is_linear
    layers = [name for name, module in model.named_modules() if fits(module)]
    if wanted is not None:
        unmatched = [target for target in wanted if not any(_ends_in(name, target) for name in layers)]
        if unmatched:
            raise UserError(
                f"target_modules {', '.join(unmatched)} match no layer that adapters go on; the model has: "
                f"{describe_layers(model)}."
            )
        return list(wanted)
    layers = [name for name in layers if not _within(name, head, *apart)]
    inside = [name for name in layers if re.search(NUMBERED, name)]
    if blocks and inside:
        return _named(model, inside, usual)
    if convolutions:  # older convolutional networks have no lists of blocks
        return _named(model, layers, usual)
    return [target for target in usual if any(_ends_in(name, target) for name in layers)] or layers


def _named(model: nn.Module, layers: list[str], usual: tuple[str, ...]) -> list[str]:
    """Targets that match exactly these layers: the usual names, then the shortest ones that match nothing else.

    PEFT adapts other kinds of layers too, so a name must not match any other module.
    """
    every, left, chosen = [name for name, _ in model.named_modules()], dict.fromkeys(layers), list[str]()

    def take(target: str) -> bool:
        hits = [name for name in every if _ends_in(name, target)]
        if not hits or any(name not in wanted for name in hits):
            return False
        if any(name in left for name in hits):
            chosen.append(target)
            for name in hits:
                left.pop(name, None)
        return True

    wanted = set(layers)
    for target in usual:
        take(target)
    while left:
        name = next(iter(left))
        parts = name.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        if not any(not target.isdecimal() and take(target) for target in endings):
            left.pop(name)  # another layer's name ends in the whole of its own: no target means it alone
    return chosen


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def target_layers(model: nn.Module, targets: list[str]) -> dict[str, nn.Module]:
    """{name: layer} of the layers that adapters go on whose name is, or ends in, one of the targets."""
    return {
        name: module
        for name, module in model.named_modules()
        if mixes_channels(module) and any(_ends_in(name, t) for t in targets)
    }


def layer_size(layer: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer; of a convolution the inputs are in_channels times the kernel's taps."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * math.prod(layer.kernel_size), layer.out_channels
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def fused_outputs(model: nn.Module, layers: Iterable[str]) -> dict[str, int]:
    """{layer: number of projections that its output holds} of those that hold several in equal blocks one after another.

    By structure: a module with two linear layers of which one takes a half (gate and up) or a third (query, key and value)
    of what the other gives. Grouped queries (fewer keys and values, by the model's config) give as many blocks as
    make keys and values whole. Layers named query_key_value hold the three head by head and count as one.
    """
    found = {}
    for name in layers:
        owner, _, own = name.rpartition(".")
        siblings = [(key, child) for key, child in model.get_submodule(owner).named_children() if is_linear(child)]
        if len(siblings) != 2 or own == "query_key_value" or not is_linear(model.get_submodule(name)):
            continue
        (one,), (other,) = ([child for key, child in siblings if (key == own) is mine] for mine in (True, False))
        count = _projections(layer_size(one)[1], layer_size(other)[0], model)
        if count > 1:
            found[name] = count
    return found


def _projections(given: int, taken: int, model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    heads, groups = (getattr(config, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
    if getattr(config, "multi_query", False):  # all heads share one key and one value
        groups = 1
    if isinstance(heads, int) and isinstance(groups, int) and groups < heads:
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        if taken == heads * width and given == (heads + 2 * groups) * width:
            return (heads + 2 * groups) // math.gcd(heads, groups)
    return given // taken if given in (2 * taken, 3 * taken) else 1


def describe_share(model: nn.Module, targets: list[str], head: str) -> str:
    """The share of the linear weights that is adapted, in one line; the head and embeddings do not count.

    Where convolutions are adapted, all of them count, those that no adapter goes on too. Experts whose weights are held in
    one tensor are not linear layers, and count as not adapted.
    """
    layers = target_layers(model, targets)
    convolutions = any(isinstance(layer, nn.Conv2d) for layer in layers.values())
    linear = {
        name: module.weight.numel() if isinstance(module, nn.Conv2d) else math.prod(layer_size(module))
        for name, module in model.named_modules()
        if (is_linear(module) or (convolutions and isinstance(module, nn.Conv2d))) and not _within(name, head)
    }
    adapted = layers.keys() & linear.keys()
    experts = sum(
        parameter.numel()
        for name, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
        if "expert" in name.lower() and parameter.ndim > 1 and not is_linear(module)
    )
    weights, every = sum(linear[name] for name in adapted), sum(linear.values()) + experts
    share = f"{100 * weights / every:.4g} %" if every else "none"
    bound = f"; {100 * experts / every:.2g} % are of experts in one tensor, which stay frozen" if experts else ""
    if convolutions:
        return f"adapts {len(adapted)} of {len(linear)} linear layers and convolutions, {share} of their weights{bound}"
    return f"adapts {len(adapted)} of {len(linear)} linear layers, {share} of the linear weights{bound}"


def describe_layers(model: nn.Module) -> str:
    """The layers of a model that adapters go on, in one line, with numbered blocks folded: "blocks.*.attn.qkv (4), …"."""
    names = [name for name, module in model.named_modules() if mixes_channels(module)]
    patterns = Counter(re.sub(r"\b\d+\b", "*", name) for name in names)
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in patterns.items()) or "none"
