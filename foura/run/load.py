"""Load a run's adapter. Run folders are untrusted input: everything is validated first."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from foura.adapter.checks import check_patterns
from foura.backbone import Backbone
from foura.errors import UserError, reason
from foura.families import build, family_of
from foura.files import read_json, read_weights, unfit
from foura.methods import method_of
from foura.methods.attach import unfreeze
from foura.methods.state import adapter_parameters
from foura.run.adapter_config import check_fields
from foura.run.run_config import read_config
from foura.untrusted import Folder

__all__ = ["check_adapter", "load_adapter", "load_bare", "read_config", "rebuild", "saved_weights"]


def saved_weights(run: Path, cfg: DictConfig) -> dict[str, Any]:
    """{name: tensor} of what a run has saved, by the names of its backbone.

    Raises:
        UserError: the files are damaged, unsafe, or of another method than the run's config says.
    """
    if method_of(cfg).trained is not None:
        return read_weights(run / "adapter" / "model.safetensors", Folder(run))
    state = check_adapter(run / "adapter", cfg)
    return {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}


def rebuild(run: Path, cfg: DictConfig) -> Backbone:
    """The backbone of a run, from the run's folder and the model alone.

    Raises:
        UserError: a model that cannot be loaded, or files of the run that are damaged.
    """
    family = family_of(cfg)
    return build(cfg).backbone if family.backbone is None else family.backbone(cfg, saved_weights(run, cfg))


def load_bare(run: Path, backbone: Backbone, cfg: DictConfig) -> nn.Module:
    """Load the weights that adapter=full or adapter=head has trained into the backbone.

    Raises:
        UserError: the weights are damaged, or of another model.
    """
    path = run / "adapter" / "model.safetensors"
    trained = method_of(cfg).trained
    assert trained is not None
    state, model = read_weights(path, Folder(run)), unfreeze(backbone, trained)
    wrong = unfit(state, adapter_parameters(model))
    if wrong:
        raise UserError(f"{path} does not fit this run's model: {wrong}.")
    model.load_state_dict(state, strict=False)
    return model


def load_adapter(model: nn.Module, run: Path, cfg: DictConfig, name: str = "default") -> PeftModel:
    """Put a run's adapter on a backbone, or beside the adapters that a model already has.

    Raises:
        UserError: the files are damaged, of another method or model, or have fields that no run writes.
    """
    folder = run / "adapter"
    state = check_adapter(folder, cfg)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except method_of(cfg).refusals as error:
        raise UserError(f"{folder} cannot be put on this run's model: {reason(error)}") from error
    wrong = unfit(state, get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if wrong:  # PEFT leaves missing tensors at their start, with a warning
        raise UserError(f"{folder}/adapter_model.safetensors does not fit this run's model: {wrong}.")
    return model


def check_adapter(folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """Load the tensors of an adapter in PEFT's format, and check that its config is safe to give to PEFT.

    Raises:
        UserError: the files are damaged or unsafe, or of another method than the run's config says.
    """
    inside, weights, path = Folder(folder), folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not inside.has(weights):
        pickled = " Its adapter_model.bin is a pickle, which can run code: where you trust it, save it as safetensors."
        raise UserError(f"{folder} has no {weights.name}.{pickled if inside.has('adapter_model.bin') else ''}")
    described = read_json(path, inside)
    wanted = method_of(cfg).peft_type(cfg.adapter)
    if described.get("peft_type") != wanted:
        raise UserError(f"{path} is of peft_type {described.get('peft_type')!r}; the run is of {wanted}.")
    start = cfg.adapter.options.get("init_lora_weights", True)  # loading an adapter makes its start anew
    if described.get("init_lora_weights", start) != start:
        raise UserError(f"{path} sets init_lora_weights={described['init_lora_weights']}; the run has {start}.")
    kind, state = PEFT_TYPE_TO_CONFIG_MAPPING[described["peft_type"]], read_weights(weights, inside)
    check_fields(path, described, kind, state)
    try:
        check_patterns(kind.from_pretrained(str(folder)))
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # of classes that take what is in the file
        raise UserError(f"{path} is not the config of an adapter: {reason(error)}") from None
    return state
