"""Causal language models of transformers: the bundled LLaMA, a hub id, or a local directory."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from foura.backbone import Backbone, choose_targets
from foura.bundled.llama import FOLDER
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

# the paper names no layers for language; these are all of a LLaMA block, and other models' are found by structure
TARGETS: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LanguageBackbone(Backbone):
    """A causal language model: `model(input_ids=…, attention_mask=…).logits`, with its tokenizer.

    Attributes:
        tokenizer: transformers'; it has a padding token.
        max_tokens: the length of the longest sequence that the model was made for.
    """

    tokenizer: Any
    max_tokens: int


def build_llama(cfg: DictConfig) -> LanguageBackbone:
    """The backbone of `cfg` (the config group).

    Raises:
        UserError: a model or tokenizer that cannot be loaded, or that do not fit each other.
    """
    quiet()
    place = place_of(cfg, FOLDER)
    if cfg.name == "embedded" and cfg.pretrained:
        verify_checksum(FOLDER / "model.safetensors")
    tokenizer = load_part("tokenizer", AutoTokenizer.from_pretrained, place, cfg)
    model: Any = _model(place, cfg)
    check_vocabulary(tokenizer, model, cfg)
    if tokenizer.eos_token_id is None and (tokenizer.bos_token_id is None or tokenizer.pad_token_id is None):
        raise UserError(f"backbone.name={cfg.name}: the tokenizer has no token that ends a text (eos_token).")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False).train()
    if cfg.gradient_checkpointing:
        enable_checkpointing(model)
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    return LanguageBackbone(
        model=model,
        targets=choose_targets(model, cfg.target_modules, TARGETS, head, blocks=True),
        head=head,
        new=(),
        body="",
        tokenizer=tokenizer,
        max_tokens=int(getattr(model.config, "max_position_embeddings", 0) or 2**31),
    )


def _model(place: str, cfg: DictConfig) -> nn.Module:
    options, shape = model_options(cfg), load_shape(place, cfg, AutoModelForCausalLM)
    if cfg.pretrained is False:
        return load_part("model", lambda _, **kw: AutoModelForCausalLM.from_config(shape, **kw), place, cfg, **options)
    model, found = load_part(
        "model", AutoModelForCausalLM.from_pretrained, place, cfg, **options, **pretrained_options(cfg)
    )
    if found["missing_keys"]:
        raise UserError(
            f"backbone.name={cfg.name}: the weights are of another model: {len(found['missing_keys'])} that this one has are "
            f"missing, such as {min(found['missing_keys'])}."
        )
    return model
