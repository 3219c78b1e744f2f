"""Loading models and tokenizers of transformers from a hub id or a directory, with errors in one sentence."""

from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig

from foura.errors import UserError, panicked, reason
from foura.families.model_files import check_model, check_parameters
from foura.files import here

OTHER_SHAPES = "its weights have other shapes than its config.json says"
CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
ATTENTION = (None, "eager", "sdpa", "flash_attention_2")


def quiet() -> None:
    """Silence transformers' warnings and progress bars."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def place_of(cfg: DictConfig, bundled: Path) -> str:
    """The hub id or directory that `cfg.name` means.

    Raises:
        UserError: `cfg.pretrained` is a path, which belongs into backbone.name here; or a file of the model is unsafe.
    """
    if isinstance(cfg.pretrained, str):
        raise UserError(
            "backbone.pretrained is true or false here; name a directory of weights with backbone.name=PATH."
        )
    if cfg.name == "embedded":
        return str(bundled)
    check_model(str(cfg.name), cfg, CONFIGS)
    return str(cfg.name)


def load_part(what: str, loader: Any, place: str, cfg: DictConfig, **options: Any) -> Any:
    """The result of a `from_pretrained`.

    Args:
        what: "config", "model" or "tokenizer", for the message.

    Raises:
        UserError: it cannot be loaded from there.
    """
    looks_local = place.startswith((".", "/", "~")) or place.count("/") != 1
    folder = here(place)
    if (folder is None or not folder.is_dir()) and looks_local and "/" in place:
        raise UserError(f"backbone.name={cfg.name}: there is no such directory.")
    if folder is not None and (folder / "adapter_config.json").exists():
        raise UserError(
            f"backbone.name={cfg.name} is the directory of an adapter, not of a model: name that of its model."
        )
    try:
        return loader(place if folder is None else str(folder), trust_remote_code=False, **options)
    except UserError:
        raise
    except BaseException as error:  # transformers and the hub raise many kinds; all of them say what is missing
        if not isinstance(error, Exception) and not panicked(error):
            raise
        said = OTHER_SHAPES if "ignore_mismatched_sizes" in str(error) else reason(error)
        raise UserError(
            f"backbone.name={cfg.name}: the {what} could not be loaded ({said}). Without a network, name a local "
            "directory that transformers' save_pretrained wrote: backbone.name=PATH."
        ) from error


def load_shape(place: str, cfg: DictConfig, auto: Any, **options: Any) -> Any:
    """The model's config.json, checked before a model is built from it.

    Args:
        auto: transformers' class that makes the model.

    Raises:
        UserError: it cannot be loaded, asks for a kernel of the hub, or for more parameters than the weights can hold.
    """
    shape = load_part("config", transformers.AutoConfig.from_pretrained, place, cfg, **options)
    # transformers takes other names for kernels on the hub, which it fetches and runs
    if getattr(shape, "_attn_implementation", None) not in ATTENTION:
        raise UserError(f"backbone.name={cfg.name}: its config.json names a kernel ({shape._attn_implementation}).")
    folder = here(place)
    if folder is not None and cfg.name != "embedded" and cfg.pretrained:
        load_part("model", lambda *_, **__: check_parameters(lambda: auto.from_config(shape), folder, cfg), place, cfg)
    return shape


def model_options(cfg: DictConfig) -> dict[str, Any]:
    """Keyword arguments of any transformers model: dtype and attention implementation."""
    options: dict[str, Any] = {"dtype": getattr(torch, cfg.torch_dtype or "float32")}
    if cfg.attn_implementation is not None:
        options["attn_implementation"] = cfg.attn_implementation
    return options


def pretrained_options(cfg: DictConfig) -> dict[str, Any]:
    """Further ones for `from_pretrained`: safetensors alone (a pickle can run code), and quantised weights."""
    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
    if cfg.load_in is not None:
        options["quantization_config"] = _quantisation(cfg.load_in)
    return options


def check_vocabulary(tokenizer: Any, model: Any, cfg: DictConfig) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings.

    Raises:
        UserError: they do not belong together.
    """
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"backbone.name={cfg.name}: the tokenizer has {last + 1} tokens and the model "
            f"{model.get_input_embeddings().num_embeddings}: they do not belong together."
        )


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in backward instead of keeping them."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.config.use_cache = False


def _quantisation(bits: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"backbone.load_in={bits} needs bitsandbytes: pip install 'foura[quantised]'.") from None
    return transformers.BitsAndBytesConfig(load_in_8bit=bits == "8bit", load_in_4bit=bits == "4bit")
