"""Causal language models by transformers: the embedded LLaMA, a hub id, or a local directory."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from omegaconf import DictConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from foura.backbone import Backbone, check_layers, choose_targets
from foura.bundled.llama import FOLDER
from foura.errors import UserError, reason
from foura.files import check_seal, here

# the paper names no layers for language; these are all of a LLaMA block, then other families' names for them
TARGETS: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS += ("c_attn", "c_fc", "query_key_value", "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "out_proj")
OTHER_SHAPES = "its weights have other shapes than its config.json says"


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
    if cfg.name == "embedded" and cfg.pretrained:
        check_seal(FOLDER / "model.safetensors")
    tokenizer = _load("tokenizer", AutoTokenizer.from_pretrained, place, cfg)
    model: Any = _model(place, cfg)
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"backbone.name={cfg.name}: the tokenizer has {last + 1} tokens and the model "
            f"{model.get_input_embeddings().num_embeddings}: they do not belong together."
        )
    if tokenizer.eos_token_id is None and (tokenizer.bos_token_id is None or tokenizer.pad_token_id is None):
        raise UserError(f"backbone.name={cfg.name}: the tokenizer has no token that ends a text (eos_token).")
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
        new=(),
        body="",
        tokenizer=tokenizer,
        max_tokens=int(getattr(model.config, "max_position_embeddings", 0) or 2**31),
    )


def _model(place: str, cfg: DictConfig) -> nn.Module:
    options: dict[str, Any] = {"dtype": getattr(torch, cfg.torch_dtype or "float32")}
    if cfg.attn_implementation is not None:
        options["attn_implementation"] = cfg.attn_implementation
    shape = _load("config", AutoConfig.from_pretrained, place, cfg)
    check_layers(shape.to_dict(), cfg.name)
    # transformers takes other names for kernels on the hub, which it fetches and runs
    if getattr(shape, "_attn_implementation", None) not in (None, "eager", "sdpa", "flash_attention_2"):
        raise UserError(f"backbone.name={cfg.name}: its config.json names a kernel ({shape._attn_implementation}).")
    if cfg.pretrained is False:
        return _load("model", lambda _, **kw: AutoModelForCausalLM.from_config(shape, **kw), place, cfg, **options)
    if cfg.load_in is not None:
        options["quantization_config"] = _quantisation(cfg.load_in)
    # safetensors alone: a pickle can run code
    options |= {"use_safetensors": True, "output_loading_info": True}
    model, found = _load("model", AutoModelForCausalLM.from_pretrained, place, cfg, **options)
    if found["missing_keys"]:
        raise UserError(
            f"backbone.name={cfg.name}: the weights are of another model: {len(found['missing_keys'])} that this one has are "
            f"missing, such as {min(found['missing_keys'])}."
        )
    return model


def _quantisation(bits: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"backbone.load_in={bits} needs bitsandbytes: pip install 'foura[quantised]'.") from None
    return transformers.BitsAndBytesConfig(load_in_8bit=bits == "8bit", load_in_4bit=bits == "4bit")


def _load(what: str, loader: Any, place: str, cfg: DictConfig, **options: Any) -> Any:
    looks_local = place.startswith((".", "/", "~")) or place.count("/") != 1
    folder = here(place)
    if (folder is None or not folder.is_dir()) and looks_local and "/" in place:
        raise UserError(f"backbone.name={cfg.name}: there is no such directory.")
    if folder is not None and (folder / "adapter_config.json").exists():
        raise UserError(f"backbone.name={cfg.name} is an adapter's directory, not a model's: name that of its model.")
    try:
        return loader(place if folder is None else str(folder), trust_remote_code=False, **options)
    except Exception as error:  # transformers and the hub raise many kinds; all of them say what is missing
        said = OTHER_SHAPES if "ignore_mismatched_sizes" in str(error) else reason(error)
        raise UserError(
            f"backbone.name={cfg.name}: the {what} could not be loaded ({said}). Without a network, name a local "
            "directory that transformers' save_pretrained wrote: backbone.name=PATH."
        ) from error


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
