"""`foura export`: a finished run's adapter in a form that another library loads."""

import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from foura.adapter import freeze_gates
from foura.adapter.freeze import foura_layers
from foura.atomic import new_folder
from foura.errors import UserError, reason
from foura.families import build, family_of
from foura.logs import quiet
from foura.methods import method_of
from foura.run.load import check_adapter, load_adapter, load_bare, read_config
from foura.run.loop import Loaders
from foura.untrusted import WEIGHTS, Folder

KEPT = ("adapter_config.json", "adapter_model.safetensors", "model.safetensors", "README.md")  # of an adapter's folder


def export(run: Path, to: str, out: Path, freeze: bool = False) -> None:
    """Write the adapter of a run's folder to `out`.

    Args:
        to: "peft": as it was saved. "merged": the whole model with the update in its weights. Otherwise a form of the
            family's `save_as_lora`: "lora", an ordinary LoRA that computes the same, or for a UNet "kohya", with kohya's names.
        freeze: calibrate an adaptive gate to a fixed mask first, on the run's own training data.

    Raises:
        UserError: this adapter does not have the form; the sentence names those that it has.
    """
    with new_folder(out) as scratch:
        _export(run, to, scratch, freeze)


def _export(run: Path, to: str, out: Path, freeze: bool) -> None:
    quiet()
    cfg = read_config(run)
    family, method = family_of(cfg), method_of(cfg)
    forms = ("peft", "merged", *family.save_as_lora)
    if to not in forms:
        raise UserError(
            f"--to {to} is not a form of adapters of backbone={family.name}; choose one of {', '.join(forms)}."
        )
    if to == "peft":
        _copy(run, cfg, out)
        return
    if to != "merged" and not method.exports:
        raise UserError(f"adapter={cfg.adapter.name} is saved in its own form already: use --to peft or --to merged.")
    parts = build(cfg)
    if method.trained is not None:
        family.save_merged(parts, load_bare(run, parts, cfg), cfg, out)
        return
    model: Any = load_adapter(parts.backbone.model, run, cfg)
    if depends_on_input(model):
        if not freeze:
            raise UserError("this adapter's gate depends on the input, so it is not a single update: add --freeze.")
        freeze_gates(model, Loaders(parts.data, cfg).inputs(parts.task(model), parts.data.train))
    if to == "merged":
        try:
            merged = model.merge_and_unload()
        except (
            NotImplementedError,
            ValueError,
        ) as error:  # PEFT's answers for an update that is not one of the weights
            raise UserError(
                f"adapter={cfg.adapter.name} cannot be merged into the weights ({reason(error)}): use --to peft."
            ) from error
        family.save_merged(parts, merged, cfg, out)
    else:
        family.save_as_lora[to](model, out)


def depends_on_input(model: nn.Module) -> bool:
    """True for an adapted model with a FouRA gate that depends on the input, so that it cannot be merged."""
    return any(layer.foura_gate for layer in foura_layers(model).values())


def _copy(run: Path, cfg: DictConfig, out: Path) -> None:
    if method_of(cfg).trained is None:
        check_adapter(run / "adapter", cfg)
    out.mkdir(parents=True)
    adapter = Folder(run / "adapter")
    for name in KEPT:
        if adapter.has(name):
            shutil.copyfile(adapter.file(name, WEIGHTS), out / name)
