"""`adapter.start_from`: training begins at the weights of an adapter of the same method, instead of at a fresh one."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from foura.errors import UserError
from foura.files import checksum, find, read_json, read_weights, unfit
from foura.methods import method_of
from foura.methods.method import RESERVED
from foura.methods.state import adapter_parameters
from foura.run.load import check_adapter

KEY = "adapter.start_from"
# fields of PEFT configs that do not change what the loaded weights compute: how they began, and how training goes on
FREE: tuple[str, ...] = (*RESERVED, "init_r", "target_r", "tinit", "tfinal", "deltaT", "total_step", "rank_pattern")
FREE += (
    "beta1",
    "beta2",
    "orth_reg_weight",
    "lora_dropout",
    "foura_dropout",
    "gate_sparsity",
    "runtime_config",
    "loftq_config",
)


def start_from(model: nn.Module, cfg: DictConfig) -> nn.Module:
    """The model, changed in place: with the adapter that `cfg.adapter.start_from` names; as it is for None.

    Raises:
        UserError: there is none at that place, it is damaged, or it is of another method, with other settings or shapes.
    """
    if cfg.adapter.start_from is None:
        return model
    folder, method = place(cfg), method_of(cfg)
    if method.trained is not None:
        state = read_weights(folder / "model.safetensors")
        _check_fit(state, adapter_parameters(model), folder)
        model.load_state_dict(state, strict=False)
        return model
    assert isinstance(model, PeftModel)
    state = check_adapter(folder, cfg)
    _check_settings(read_json(folder / "adapter_config.json"), model.peft_config["default"], folder)
    as_saved: Any = {"state_dict": method.saved(model, model.state_dict()), "save_embedding_layers": False}
    _check_fit(state, get_peft_model_state_dict(model, **as_saved), folder)
    method.load_saved(model, state)
    return model


def place(cfg: DictConfig) -> Path:
    """The folder of the adapter: the one that is named, or the `adapter` of a run's folder.

    Raises:
        UserError: nothing is there.
    """
    named = find(cfg.adapter.start_from, KEY).absolute()
    return named / "adapter" if (named / "adapter").is_dir() else named


def described(cfg: DictConfig) -> str:
    """The adapter that a run starts from, for a tag: its place, and the beginning of its weights' checksum."""
    folder = place(cfg)
    name = "model.safetensors" if method_of(cfg).trained is not None else "adapter_model.safetensors"
    return f"{folder} (sha256 {checksum(folder / name)[:16]})"


def _check_settings(kept: dict[str, Any], config: Any, folder: Path) -> None:
    """Refuse an adapter whose weights would compute something else here."""
    ours = json.loads(json.dumps(config.to_dict(), default=lambda value: sorted(value, key=str)))
    for name, value in ours.items():
        if name in kept and name not in FREE and not name.startswith("init_") and kept[name] != value:
            raise UserError(
                f"{KEY}={folder}: the adapter has {name}={kept[name]}, and this run {name}={value}; make them the same."
            )


def _check_fit(state: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    wrong = unfit(state, wanted)
    if wrong:
        raise UserError(f"{KEY}={folder} does not fit this run's model: {wrong}.")
