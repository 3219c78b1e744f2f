"""What a run left in its folder, checked before anything is made of it: a folder can come from somebody else."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from foura.adapter.checks import check_patterns
from foura.config import check, explain, register
from foura.errors import UserError, reason
from foura.families.family import Parts
from foura.files import read_json, read_text, read_weights, unfit
from foura.methods.attach import adapter_parameters, attach
from foura.schema import Config

BARE = ("full", "head")  # methods whose weights are saved without PEFT
PEFT_TYPES = {"foura": "FOURA", "lora": "LORA", "dora": "LORA", "sora": "LORA"}
PEFT_TYPES |= {"adalora": "ADALORA", "vera": "VERA", "fourierft": "FOURIERFT"}
RANKS = ("r", "init_r", "target_r", "n_frequency", "rank_pattern", "n_frequency_pattern")
MOST_RANK = 4096  # of a config, beside what the weights themselves have
# PEFT imports the module that the first names and takes another wrapper for the second; no run writes either
UNWRITTEN = ("megatron_config", "task_type")


def read_config(run: Path) -> DictConfig:
    """The config of a finished run's folder.

    Raises:
        UserError: the folder is none, or its config is not one that a run could have.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is no finished run: it has no config.yaml.")
    register()
    cfg = _parsed(path)
    try:
        check(cfg)
    except UserError as error:
        raise UserError(f"{path} is no run's config: {error}") from None
    adapter = run / "adapter" / ("model.safetensors" if cfg.adapter.method in BARE else "adapter_config.json")
    if not adapter.is_file():
        raise UserError(f"{run} is no finished run: it has no {adapter.relative_to(run)}.")
    return cfg


def _parsed(path: Path) -> Any:
    """The file merged into the schema, whose types it then has."""
    text = read_text(path)
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it refers to its own parts, which no run writes and which can grow without end")
        return OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text))
    except OmegaConfBaseException as error:
        raise UserError(f"{path} is no run's config: {explain(error)}") from None
    except Exception as error:  # of YAML's and OmegaConf's parsers, which raise what the text leads them to
        raise UserError(f"{path} is no run's config: {reason(error)}") from None


def load_bare(run: Path, parts: Parts, cfg: DictConfig) -> nn.Module:
    """The backbone with the weights that adapter=full or adapter=head trained.

    Raises:
        UserError: weights that are damaged, or of another model.
    """
    path = run / "adapter" / "model.safetensors"
    state, model = read_weights(path), attach(parts.backbone, cfg, steps=1)
    wrong = unfit(state, adapter_parameters(model))
    if wrong:
        raise UserError(f"{path} does not fit this run's model: {wrong}.")
    model.load_state_dict(state, strict=False)
    return model


def load_adapter(model: nn.Module, run: Path, method: str, name: str = "default") -> PeftModel:
    """A run's adapter on a backbone, or beside the adapters that a model already has.

    Raises:
        UserError: files that are damaged, of another method or model, or that ask for what no run writes.
    """
    folder = run / "adapter"
    state = check_adapter(folder, method)
    # of ours the documented errors alone, so that a bug is not taken for a user's mistake, and PEFT's KeyError for a
    # saved module that is missing; PEFT's peers raise many kinds
    documented = (ValueError, TypeError, RuntimeError, KeyError)
    kinds: tuple[type[Exception], ...] = documented if method == "foura" else (Exception,)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except kinds as error:
        raise UserError(f"{folder} cannot be put on this run's model: {reason(error)}") from error
    wrong = unfit(state, get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if wrong:  # PEFT leaves what it does not find at its start, and says so in a warning
        raise UserError(f"{folder}/adapter_model.safetensors does not fit this run's model: {wrong}.")
    return model


def check_adapter(folder: Path, method: str) -> dict[str, Any]:
    """The tensors of an adapter in PEFT's format whose config can be given to PEFT.

    Raises:
        UserError: it cannot.
    """
    weights, path = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not weights.exists():
        pickled = " Its adapter_model.bin is a pickle, which can run code: where you trust it, save it as safetensors."
        has = pickled if (folder / "adapter_model.bin").exists() else ""
        raise UserError(f"{folder} has no adapter_model.safetensors.{has}")
    described = read_json(path)
    if described.get("peft_type") != PEFT_TYPES[method]:
        raise UserError(f"{path} is of peft_type {described.get('peft_type')!r}; the run is of {PEFT_TYPES[method]}.")
    for field in UNWRITTEN:
        if described.get(field) is not None:
            raise UserError(f"{path} sets {field}, which no run writes.")
    state = read_weights(weights)
    largest = max([MOST_RANK, *(size for tensor in state.values() for size in tensor.shape)])
    for field in RANKS:
        value = described.get(field)
        for rank in value.values() if isinstance(value, dict) else [] if value is None else [value]:
            sizes = [len(rank)] if isinstance(rank, list) else [rank]  # AdaLoRA's pattern says yes or no to each rank
            if any(not isinstance(size, int) or not 0 <= size <= largest for size in sizes):
                raise UserError(f"{path}: {field}={value} is no rank that its weights have.")
    try:
        check_patterns(PEFT_TYPE_TO_CONFIG_MAPPING[described["peft_type"]].from_pretrained(str(folder)))
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # of classes that take what is in the file
        raise UserError(f"{path} is no config of an adapter: {reason(error)}") from None
    return state
