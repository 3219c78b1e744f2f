"""Encoders by transformers with a head for sequences: the bundled BERT, a hub id, or a local directory."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from foura.backbone import LINEAR, Backbone, choose_targets
from foura.bundled.encoder import FOLDER
from foura.errors import UserError
from foura.families.transformers_models import (
    check_vocabulary,
    enable_checkpointing,
    load_part,
    load_shape,
    model_options,
    place_of,
    pretrained_options,
    quiet,
)
from foura.files import verify_checksum

POSITIONS_TAKEN = 2  # RoBERTa and its kin count positions from there


@dataclass(frozen=True)
class EncoderBackbone(Backbone):
    """A model with `model(input_ids=…, attention_mask=…).logits` (S, classes), or (S, 1) for regression; its head is new.

    Attributes:
        tokenizer: transformers'; it has a padding token.
        max_tokens: the longest sequence that the model was made for.
        typed: the model has token types, by which BERT and its kin tell the two texts of a pair apart.
    """

    tokenizer: Any
    max_tokens: int
    typed: bool


def build_encoder(cfg: DictConfig, classes: Sequence[str] | None) -> EncoderBackbone:
    """The backbone of `cfg` (the config group) with a new head.

    Args:
        classes: names of the classes; None for regression.

    Raises:
        UserError: a model or tokenizer that cannot be loaded, or that do not fit each other.
    """
    quiet()
    place = place_of(cfg, FOLDER)
    if cfg.name == "embedded" and cfg.pretrained:
        verify_checksum(FOLDER / "model.safetensors")
    tokenizer = load_part("tokenizer", AutoTokenizer.from_pretrained, place, cfg)
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"backbone.name={cfg.name}: the tokenizer has no padding token (pad_token), which batches of texts need; save "
            "it with one."
        )
    model, missing = _model(place, cfg, classes, tokenizer.pad_token_id)
    check_vocabulary(tokenizer, model, cfg)
    model.requires_grad_(False).train()
    if cfg.gradient_checkpointing:
        enable_checkpointing(model)
    head, new = _head(model, missing, cfg)
    usual = tuple(_layers_of_blocks(model.base_model))
    longest = int(getattr(model.config, "max_position_embeddings", 0) or 2**31)
    return EncoderBackbone(
        model=model,
        targets=choose_targets(model, cfg.target_modules, usual, head, blocks=True),
        head=head,
        new=new,
        body="",
        tokenizer=tokenizer,
        typed=_is_typed(model),
        max_tokens=longest - POSITIONS_TAKEN if model.config.model_type.endswith("roberta") else longest,
    )


def _is_typed(model: Any) -> bool:
    """True for a model of several token types; RoBERTa and its kin have one, others have none."""
    several = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    return several and "token_type_ids" in inspect.signature(model.forward).parameters


@torch.no_grad()
def start_at(backbone: EncoderBackbone, value: float) -> None:
    """Make a new regression head predict about `value`, the mean label, from the start.

    At an adapter's learning rate its bias would take hundreds of steps to get there.
    """
    layers = [
        module for module in backbone.model.get_submodule(backbone.head).modules() if isinstance(module, nn.Linear)
    ]
    if layers and layers[-1].bias is not None:
        layers[-1].bias.fill_(value)


def _model(place: str, cfg: DictConfig, classes: Sequence[str] | None, pad: int) -> tuple[Any, set[str]]:
    """(the model, names of the weights that are not in its files)."""
    labels = {"num_labels": 1, "problem_type": "regression"} if classes is None else {"num_labels": len(classes)}
    shape, options = load_shape(place, cfg, AutoModelForSequenceClassification, **labels), model_options(cfg)
    if shape.pad_token_id is None:
        shape.pad_token_id = pad
    auto: Any = AutoModelForSequenceClassification
    if cfg.pretrained is False:
        model = load_part("model", lambda _, **kw: auto.from_config(shape, **kw), place, cfg, **options)
        return model, {name for name in model.state_dict() if not name.startswith(f"{model.base_model_prefix}.")}
    # a head for other classes than these is replaced
    options |= {"config": shape, "ignore_mismatched_sizes": True, **pretrained_options(cfg)}
    model, found = load_part("model", auto.from_pretrained, place, cfg, **options)
    wrong = [entry[0] for entry in found["mismatched_keys"]]
    if any(name.startswith(f"{model.base_model_prefix}.") for name in wrong):
        raise UserError(f"backbone.name={cfg.name}: {wrong[0]} has another shape than its config.json says.")
    return model, {*found["missing_keys"], *wrong}


def _head(model: Any, missing: set[str], cfg: DictConfig) -> tuple[str, tuple[str, ...]]:
    """(name of the output layer, names of the modules without pretrained weights; the output layer's is always among them).

    Raises:
        UserError: weights of the encoder itself are missing.
    """
    prefix = f"{model.base_model_prefix}."
    own = [name for name, _ in model.named_children() if not f"{name}.".startswith(prefix)]
    heads = [name for name in own if any(True for _ in model.get_submodule(name).parameters())]
    if not heads:
        raise UserError(f"backbone.name={cfg.name} has no head of its own for sequences; choose another model.")
    new = {name for name in heads if any(key.startswith(f"{name}.") for key in missing)} | {heads[-1]}
    poolers = {
        key.partition(".pooler.")[0] + ".pooler" for key in missing if key.startswith(prefix) and ".pooler." in key
    }
    lacking = [key for key in sorted(missing) if key.startswith(prefix) and ".pooler." not in key]
    if lacking:
        raise UserError(
            f"backbone.name={cfg.name}: the weights are of another model: {len(lacking)} that this one has are missing, such "
            f"as {lacking[0]}."
        )
    return heads[-1], tuple(sorted(new | poolers))


def _layers_of_blocks(model: Any) -> list[str]:
    """Names, within a block, of the linear layers in the model's lists of blocks: "attention.self.query", …, each once."""
    names: dict[str, None] = {}
    for name, module in model.named_modules():
        _, block, inside = name.rpartition(next(iter(re.findall(r"\.\d+\.", f".{name}")[-1:]), "\0"))
        if isinstance(module, LINEAR) and block and inside:
            names[inside] = None
    return list(names)
