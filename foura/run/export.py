"""`foura export`: a finished run's adapter in a form that another library loads."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from foura.adapter import freeze_gates
from foura.adapter.freeze import foura_layers
from foura.adapter.merging import untie
from foura.atomic import new_folder
from foura.backbone import Backbone
from foura.errors import UserError, reason
from foura.families import build, family_of
from foura.families.family import Parts
from foura.families.task import Task
from foura.logs import quiet
from foura.methods import method_of
from foura.run.export_forms import check_export
from foura.run.load import load_adapter, load_bare, rebuild, saved_weights
from foura.run.loop import Loaders
from foura.untrusted import JSON, WEIGHTS, Folder

# {true for a bare model: {a file of an adapter's folder: the most bytes of it}}
KEPT: dict[bool, dict[str, int]] = {
    False: {"adapter_config.json": JSON, "adapter_model.safetensors": WEIGHTS, "README.md": JSON},
    True: {"model.safetensors": WEIGHTS, "README.md": JSON},
}
# Largest difference of merged and unmerged outputs, as a share of the largest output. Half precision rounds W + ΔW, and a
# quantised weight is quantised again, so there the difference is said and judged by the reader.
AGREES = 1e-3


def export(run: Path, to: str, out: Path, freeze: bool = False, per_layer_ranks: bool = False) -> str:
    """Write the adapter of a run's folder to `out`. It needs the model, and the run's data only to freeze a gate.

    Args:
        to: "peft": as it was saved. "merged": the whole model with the update in its weights. Otherwise a form of the
            family's `save_as_lora`: "lora", an ordinary LoRA that computes the same, or for a UNet "kohya", with kohya's names.
        freeze: calibrate an adaptive gate to a fixed mask first, on the run's own training data.
        per_layer_ranks: of a LoRA, do not fill up layers of fewer ranks with zeros.

    Returns:
        a sentence: what was written, and who reads it.

    Raises:
        UserError: of `check_export`, or something that the form cannot hold.
    """
    cfg, gated = check_export(run, to, out, freeze)
    with new_folder(out) as scratch:
        return _export(run, cfg, to, scratch, gated, per_layer_ranks)


def _export(run: Path, cfg: DictConfig, to: str, out: Path, gated: bool, per_layer_ranks: bool) -> str:
    quiet()
    family, method = family_of(cfg), method_of(cfg)
    if to == "peft":
        return _copy(run, cfg, out)
    parts = _with_data(cfg) if gated else None
    backbone = rebuild(run, cfg) if parts is None else parts.backbone
    if method.trained is not None:
        return _save_merged(backbone, load_bare(run, backbone, cfg), cfg, out)
    model: Any = load_adapter(backbone.model, run, cfg)
    if cfg.backbone.name == "embedded":  # PEFT would look for a model of this name on the hub
        model.peft_config["default"].base_model_name_or_path = None
    frozen = "" if parts is None else f" {_freeze(model, parts, cfg)}"
    if to == "merged":
        return _save_merged(backbone, model, cfg, out) + frozen
    try:
        said = family.save_as_lora[to](model, out, per_layer_ranks) + frozen
    except ValueError as error:  # the library's answers for something trained that the form cannot hold
        raise UserError(f"--to {to}: {reason(error)}") from error
    return f"{said} {_sizes(run, out)}" if frozen else said


def _freeze(model: Any, parts: Parts, cfg: DictConfig) -> str:
    """Freeze the gates on the training data; a sentence: ranks kept, and the validation loss before and after."""
    task, loaders = parts.task(model), Loaders(parts.data, cfg)
    before = _validation_loss(task, loaders)
    with warnings.catch_warnings():  # the sentence says it
        warnings.filterwarnings("ignore", message=".*adapt nothing")
        kept = freeze_gates(model, loaders.inputs(task, parts.data.train))
    layers = foura_layers(model)
    ranks = sum(layers[name].r[adapter] for name in kept for adapter in layers[name].active_adapters)
    nothing = sum(count == 0 for count in kept.values())
    closed = f", {nothing} of {len(kept)} layers adapt nothing" if nothing else ""
    after = _validation_loss(task, loaders)
    return (
        f"Frozen gates: {sum(kept.values())} of {ranks} ranks kept, {min(kept.values())} to {max(kept.values())} by "
        f"layer{closed}; validation loss "
        f"{before:.4f} with adaptive gates, {after:.4f} frozen."
    )


@torch.no_grad()
def _validation_loss(task: Task, loaders: Loaders) -> float:
    task.model.eval()
    return task.mean_loss(loaders.evaluation()[1])


def _sizes(run: Path, out: Path) -> str:
    was, now = (sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (run / "adapter", out))
    return f"{now / 1e6:.2f} MB, {was / 1e6:.2f} MB with adaptive gates."


def _with_data(cfg: DictConfig) -> Parts:
    try:
        return build(cfg)
    except UserError as error:
        raise UserError(f"--freeze calibrates the gate on the run's training data: {error}") from error


def _save_merged(backbone: Backbone, model: Any, cfg: DictConfig, out: Path) -> str:
    """Merge and write a model, load what was written, and compare it with the adapted model on a small input."""
    family = family_of(cfg)
    inputs = None if family.example is None else family.example(backbone)
    expected = None if inputs is None else _outputs(model, inputs)
    merged = model if method_of(cfg).trained is not None else _merged(model, cfg)
    scratch = out.with_name(f".{out.name}-writing")
    shutil.rmtree(scratch, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        family.save_merged(backbone, merged, cfg, scratch)
        if inputs is None or expected is None or family.load_merged is None:
            said = "the whole model; it was not compared with the adapted one, because its family has no example input."
        else:
            found = _outputs(family.load_merged(backbone, cfg, scratch), inputs)
            said = f"the whole model; {_agreement(found, expected, cfg)}"
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return said


def _merged(model: Any, cfg: DictConfig) -> nn.Module:
    untie(model)  # a merged output layer must not change the embeddings that it shares its weight with
    try:
        merged: nn.Module = model.merge_and_unload()
    except (NotImplementedError, ValueError) as error:  # PEFT's answers for an update that is not one of the weights
        raise UserError(
            f"adapter={cfg.adapter.name} cannot be merged into the weights ({reason(error)}): use --to peft."
        ) from error
    return merged


@torch.no_grad()
def _outputs(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    found = model.eval()(**inputs)
    tensor: Tensor = found if isinstance(found, Tensor) else found.logits
    return tensor.double()


def _agreement(found: Tensor, expected: Tensor, cfg: DictConfig) -> str:
    """A sentence: by how much the written model's outputs differ from the adapted model's.

    Raises:
        UserError: by so much that it is another model.
    """
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    rounds = cfg.backbone.load_in is not None or cfg.backbone.torch_dtype not in (None, "float32", "float64")
    if not rounds and not error <= AGREES * largest:  # NaN fails this too
        raise UserError(
            f"the merged model, loaded again, differs from the adapted one by {error:.1g} in outputs of up to {largest:.3g}, "
            "so nothing was kept: use --to peft or --to lora."
        )
    return f"its outputs agree with the adapted model's to {error:.0e} (they are up to {largest:.3g})."


def _copy(run: Path, cfg: DictConfig, out: Path) -> str:
    saved_weights(run, cfg)  # which checks them
    out.mkdir(parents=True)
    adapter, bare = Folder(run / "adapter"), method_of(cfg).trained is not None
    for name, most in KEPT[bare].items():
        if adapter.has(name):
            shutil.copyfile(adapter.file(name, most), out / name)
    return "the adapter as it was saved, for PEFT (after `import foura` where its peft_type is FOURA)."
