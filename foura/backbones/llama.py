"""Causal language models by transformers: the embedded LLaMA, a hub id, or a local directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from foura.backbones.backbone import Backbone, choose_targets
from foura.backbones.llama_embedded import FOLDER
from foura.errors import UserError

# the paper names no layers for language; these are all of a LLaMA block, then other families' names for them
TARGETS: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS += ("c_attn", "c_fc", "query_key_value", "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "out_proj")


@dataclass(frozen=True)
class LanguageBackbone(Backbone):
    """A causal language model: `model(input_ids=…, attention_mask=…).logits`, with its tokenizer.

    Attributes:
        tokenizer: transformers'; it has a padding token.
        max_tokens: the longest sequence that the model was made for.
    """

    tokenizer: Any
    max_tokens: int


def build_llama(cfg: DictConfig) -> LanguageBackbone:
    """The backbone of `cfg` (the config group).

    Raises:
        UserError: a model or tokenizer that cannot be loaded, or that do not fit each other.
    """
    _quiet()
    place = str(FOLDER) if cfg.name == "embedded" else str(cfg.name)
    if isinstance(cfg.pretrained, str):
        raise UserError(
            "backbone.pretrained is true or false here; name a directory of weights with backbone.name=PATH."
        )
    tokenizer = _load("tokenizer", AutoTokenizer.from_pretrained, place, cfg)
    model: Any = _model(place, cfg)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"backbone.name={cfg.name}: the tokenizer has {len(tokenizer)} tokens and the model "
            f"{model.get_input_embeddings().num_embeddings}: they do not belong together."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False).train()
    if cfg.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        model.config.use_cache = False
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    return LanguageBackbone(
        model=model,
        targets=choose_targets(model, cfg.target_modules, TARGETS, head),
        head=head,
        new_head=False,
        body="",
        tokenizer=tokenizer,
        max_tokens=int(getattr(model.config, "max_position_embeddings", 0) or 2**31),
    )


def _model(place: str, cfg: DictConfig) -> nn.Module:
    options: dict[str, Any] = {"dtype": getattr(torch, cfg.torch_dtype or "float32")}
    if cfg.attn_implementation is not None:
        options["attn_implementation"] = cfg.attn_implementation
    if cfg.pretrained is False:
        shape = _load("config", AutoConfig.from_pretrained, place, cfg)
        return AutoModelForCausalLM.from_config(shape, trust_remote_code=False, **options)
    if cfg.load_in is not None:
        options["quantization_config"] = _quantisation(cfg.load_in)
    # safetensors alone: a pickle can run code
    return _load("model", AutoModelForCausalLM.from_pretrained, place, cfg, use_safetensors=True, **options)


def _quantisation(bits: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"backbone.load_in={bits} needs bitsandbytes: pip install 'foura[quantised]'.") from None
    return transformers.BitsAndBytesConfig(load_in_8bit=bits == "8bit", load_in_4bit=bits == "4bit")


def _load(what: str, loader: Any, place: str, cfg: DictConfig, **options: Any) -> Any:
    looks_local = place.startswith((".", "/", "~")) or place.count("/") != 1
    folder = Path(place).expanduser()
    if looks_local and not folder.is_dir() and "/" in place:
        raise UserError(f"backbone.name={cfg.name}: there is no such directory.")
    try:
        return loader(str(folder) if folder.is_dir() else place, trust_remote_code=False, **options)
    except Exception as error:  # transformers and the hub raise many kinds; all of them say what is missing
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"backbone.name={cfg.name}: the {what} could not be loaded ({reason}). Without a network, name a local "
            "directory that transformers' save_pretrained wrote: backbone.name=PATH."
        ) from error


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
