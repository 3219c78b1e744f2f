"""Several adapters at inference (paper sec. 3.5): without joint training, their updates are added, each at its strength."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from foura.adapter.layer import FouraLayer
from foura.analysis.spectrum import overlap
from foura.errors import UserError
from foura.families import build
from foura.files import write_csv
from foura.logs import quiet
from foura.methods import method_of
from foura.run.load import load_adapter, read_config
from foura.run.loop import Loaders, trainer_of
from foura.run.recorder import FinalMeasures


def merge_evaluate(runs: list[Path], strengths: list[float], folder: Path) -> list[dict[str, Any]]:
    """Test metrics of each run's data with its own adapter alone, and with all adapters at their strengths.

    Args:
        runs: folders of finished runs on one backbone, each with config.yaml and adapter/.
        strengths: one per run.
        folder: gets merged.csv, and a folder per evaluation with its images and tables.

    Returns:
        the rows of merged.csv: {"data": "run1", "adapters": "run1+run2", metric: value, …}. "overlap" is the part of this
        run's update in the subspace of the others' (paper Table B.2), a mean over layers.

    Raises:
        UserError: folders without an adapter, different backbones, or a method whose strength cannot be set.
    """
    quiet()
    configs = _read_configs(runs)
    names = [f"run{number}" for number in range(1, len(runs) + 1)]
    rows: list[dict[str, Any]] = []
    for own, cfg in zip(names, configs, strict=True):
        parts = build(cfg)
        if parts.backbone.new:
            raise UserError("each of these runs has a classifier of its own, and classifiers do not add up.")
        model: Any = parts.backbone.model
        for name, run in zip(names, runs, strict=True):
            model = load_adapter(model, run, cfg, name)
        others = [name for name in names if name != own]
        shared = sum(_overlap(model, own, other) for other in others) / len(others)
        for active in ([own], names):
            _activate(model, active, dict(zip(names, strengths, strict=True)) if len(active) > 1 else {own: 1.0})
            into = folder / f"{own}-with-{'-'.join(active)}"
            into.mkdir(parents=True, exist_ok=True)
            measured = _test(parts, model, cfg, into)
            rows.append({"data": own, "adapters": "+".join(active), "overlap": shared, **measured})
    write_csv(rows, folder / "merged.csv")
    return rows


def _read_configs(runs: list[Path]) -> list[DictConfig]:
    """The configs of runs whose adapters can be added."""
    configs = [read_config(run) for run in runs]
    if len({repr(OmegaConf.to_container(cfg.backbone)) for cfg in configs}) > 1:
        raise UserError("the runs have different backbones: adapters add up on the same frozen model only.")
    methods = {cfg.adapter.method for cfg in configs}
    if len(methods) > 1:
        raise UserError(f"PEFT holds adapters of one method in a model, and these are of {', '.join(sorted(methods))}.")
    if any(method_of(cfg).trained for cfg in configs):
        raise UserError("adapter=full and adapter=head leave no adapter that could be added to another.")
    if any(method_of(cfg).changes_weights(cfg.adapter) for cfg in configs):
        raise UserError("these adapters start by reducing the frozen weights, which a second one would find reduced.")
    return configs


def _overlap(model: PeftModel, first: str, second: str) -> float:
    """Mean over layers of `spectrum.overlap`, with all ranks of an adaptive gate open."""
    found = []
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        pair: list[torch.Tensor] = []
        for name in (first, second):
            gated = isinstance(layer, FouraLayer) and name in layer.foura_gate
            fixed: dict[str, Any] = {"gate": torch.ones(layer.r[name])} if gated else {}
            pair.append(layer.get_delta_weight(name, **fixed).detach().cpu().flatten(1))
        found.append(overlap(pair[0], pair[1], layer.r[second]))
    return sum(found) / len(found)


def _activate(model: PeftModel, active: list[str], strengths: dict[str, float]) -> None:
    """Switch on these adapters, each at its strength."""
    tuner: Any = model.base_model
    tuner.set_adapter(active)
    layer: Any
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            if not hasattr(layer, "set_scale"):
                raise UserError(
                    f"{type(layer).__module__} has no strength that can be set, so its adapters cannot be mixed."
                )
            for name, alpha in strengths.items():
                layer.set_scale(name, alpha)


def _test(parts: Any, model: PeftModel, cfg: DictConfig, folder: Path) -> dict[str, float]:
    cfg.evaluation.strengths = [1.0]  # each adapter has its own already
    cfg.evaluation.test = True  # it is what is measured here, also of a run that left it alone
    if cfg.trainer.accelerator != "cpu":
        cfg.trainer.accelerator = "auto"  # this machine may lack the one that the run was trained on
    task = parts.task(model)
    with torch.no_grad():
        trainer_of(cfg, folder, [FinalMeasures(parts.data, folder)]).test(
            task, Loaders(parts.data, cfg).test(), verbose=False
        )
    return task.tested
