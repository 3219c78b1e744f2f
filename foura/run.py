"""One run, start to end: config -> data and backbone -> adapter -> training -> evaluation -> tracking."""

import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from pytorch_lightning import Trainer, seed_everything
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from foura.adapter import freeze_gates
from foura.analysis.overfitting import onset_epoch
from foura.attach import adapter_parameters, attach, target_layers
from foura.backbones.vit import build_vit
from foura.config import outputs_dir, scientific
from foura.datasets.sources import open_source
from foura.datasets.splits import ImageData, prepare
from foura.errors import UserError
from foura.report.figures import draw_curves, draw_layers
from foura.report.layers import layer_table, mean_effective_rank, total_delta_norm, write_table
from foura.tasks.callbacks import Cost, EpochMetrics, ProgressLines, SelectedEpoch, peak_memory_mb
from foura.tasks.classification import Classification
from foura.tracking.status import RunStatus, state_of
from foura.tracking.store import parent_run, start_run, ui_command


def run(cfg: DictConfig, folder: Path, status: RunStatus) -> dict[str, float]:
    """Train, select, test and record one adapter; returns its final metrics.

    Args:
        folder: the run's own folder; the adapter, figures and tables are left there and in MLflow.
        status: the run's status.json, told the MLflow run and the metrics.

    Raises:
        UserError: anything in the config, the data or the backbone that cannot work; `Diverged` for a NaN loss.
    """
    _quiet()
    console = Console(highlight=False)
    title = f"{cfg.adapter.name} r{cfg.rank} seed {cfg.seed}"
    _check_device(cfg.trainer.accelerator)

    seed_everything(cfg.seed, verbose=False)
    source = open_source(cfg.dataset)
    backbone = build_vit(cfg.backbone, len(source.classes))
    data = prepare(source, cfg.dataset, cfg.seed, backbone.image_mode, backbone.preprocess)
    before = _weights_before(backbone, cfg)
    loaders = _Loaders(data, cfg)
    seed_everything(cfg.seed, verbose=False)  # the adapter starts alike whatever the data needed of the generator
    model = attach(backbone, cfg, steps=loaders.steps())

    tracked = start_run(outputs_dir(cfg), title, scientific(cfg), _tags(cfg, data), _parent(cfg))
    status.write("running", run_id=tracked.run_id)
    try:
        task = Classification(model, len(data.classes), cfg.optimizer)
        selected, cost = SelectedEpoch(cfg.select), Cost()
        progress = ProgressLines(console, title, bar=cfg.trainer.enable_progress_bar)
        trainer = _trainer(cfg, folder, [selected, cost, EpochMetrics(tracked), progress])
        try:
            trainer.fit(task, loaders.train(), loaders.evaluation())
        except (KeyboardInterrupt, SystemExit):
            _save_adapter(selected, task, folder)  # what was earned so far is kept
            raise
        if not task.history:
            raise UserError(
                "training ended before its first evaluation, so there is nothing to select: raise trainer.max_epochs or "
                "trainer.max_steps, or lower trainer.check_val_every_n_epoch."
            )
        final = task.history[-1]
        selected.restore(task)
        best = selected.row
        if cfg.adapter.gate == "frozen":
            freeze_gates(task.model, loaders.inputs(data.train))
            trainer.validate(task, loaders.evaluation(), verbose=False)
            best = task.history.pop()
        trainer.test(task, loaders.test(), verbose=False)

        table = layer_table(task.model.eval(), loaders.inputs(data.train_eval), before)
        metrics = _final_metrics(task, final, best, table, cost, task.device)
        _save_adapter(selected, task, folder)
        _draw(task, selected.epoch or 0, table, title, folder)
        tracked.log_metrics(metrics)
        for artifact in ("config.yaml", "adapter", "curves.png", "layers.png", "layers.csv"):
            if (folder / artifact).exists():
                tracked.log_artifact(folder / artifact)
        status.fields["metrics"] = metrics
        tracked.close("finished")
    except BaseException as error:
        tracked.close(state_of(error))
        raise
    _print_table(console, title, metrics, cfg)
    return metrics


class _Loaders:
    """The DataLoaders of a run. Training order depends on the seed alone, not on the adapter."""

    def __init__(self, data: ImageData, cfg: DictConfig) -> None:
        self.data, self.cfg = data, cfg

    def train(self) -> DataLoader:
        order = torch.Generator().manual_seed(self.cfg.seed)
        size = self.cfg.dataset.batch_size
        return DataLoader(
            self.data.train, size, shuffle=True, generator=order, num_workers=self.cfg.dataset.num_workers
        )

    def evaluation(self) -> list[DataLoader]:
        return [self._fixed(self.data.train_eval), self._fixed(self.data.validation)]

    def test(self) -> DataLoader:
        return self._fixed(self.data.test)

    def inputs(self, dataset: Dataset) -> list[torch.Tensor]:
        return [images for images, _ in self._fixed(dataset)]

    def steps(self) -> int:
        batches = len(self.train())
        epochs = self.cfg.trainer.max_epochs or 1
        return max(1, epochs * batches // self.cfg.trainer.accumulate_grad_batches)

    def _fixed(self, dataset: Dataset) -> DataLoader:
        return DataLoader(dataset, self.cfg.dataset.eval_batch_size, num_workers=self.cfg.dataset.num_workers)


def _trainer(cfg: DictConfig, folder: Path, callbacks: list[Any]) -> Trainer:
    arguments: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    arguments["enable_progress_bar"] = False  # ours shows the whole run with its ETA
    ours: Any = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**arguments, **ours, callbacks=callbacks, default_root_dir=str(folder))


def _final_metrics(
    task: Classification, final: dict[str, float], best: dict[str, float], table: list[Any], cost: Cost, device: Any
) -> dict[str, float]:
    metrics = {
        "final/loss": final["val/loss"],
        "final/acc": final["val/acc"],
        "final/gap_loss": final["gap/loss"],
        "final/gap_acc": final["gap/acc"],
        "best/loss": best["val/loss"],
        "best/acc": best["val/acc"],
        "best/train_acc": best["train_eval/acc"],
        "overfit/onset_epoch": onset_epoch(
            [row["epoch"] for row in task.history], [row["val/loss"] for row in task.history]
        ),
        "cost/trainable_params": float(sum(p.numel() for p in task.model.parameters() if p.requires_grad)),
        "cost/step_time_ms": cost.step_time_ms(),
        "cost/peak_memory_mb": peak_memory_mb(device),
        "adapter/delta_norm": total_delta_norm(table),
        **task.tested,
    }
    rank = mean_effective_rank(table)
    return metrics if rank is None else {**metrics, "adapter/effective_rank": rank}


def _save_adapter(selected: SelectedEpoch, task: Classification, folder: Path) -> None:
    """Write the selected epoch's adapter beside, then rename: `folder/adapter` is whole or not there."""
    if selected.epoch is None:
        return
    if task.trainer.interrupted:
        selected.restore(task)
    target, scratch = folder / "adapter", folder / ".adapter.writing"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    if isinstance(task.model, PeftModel):
        task.model.save_pretrained(str(scratch), save_embedding_layers=False)
    else:
        state = {name: tensor.cpu().contiguous() for name, tensor in adapter_parameters(task.model).items()}
        save_file(state, scratch / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)


def _draw(task: Classification, selected: int, table: list[dict[str, Any]], title: str, folder: Path) -> None:
    draw_curves(task.history, selected, title, folder / "curves.png")
    if table:
        write_table(table, folder / "layers.csv")
        draw_layers(table, title, folder / "layers.png")


def _tags(cfg: DictConfig, data: ImageData) -> dict[str, Any]:
    adapter = cfg.adapter
    foura = adapter.method == "foura"
    return {
        "sweep": _sweep(cfg) or "",
        "adapter": adapter.name,
        "transform": adapter.transform if foura else "none",
        "gate": adapter.gate if foura else "none",
        "backbone": cfg.backbone.family if cfg.backbone.name == "embedded" else cfg.backbone.name,
        "dataset": cfg.dataset.name,
        "rank": cfg.rank,
        "alpha": cfg.alpha,
        "seed": cfg.seed,
        "data_fingerprint": data.fingerprint,
    }


def _sweep(cfg: DictConfig) -> str | None:
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    return cfg.sweep


def _parent(cfg: DictConfig) -> str | None:
    sweep = _sweep(cfg)
    return None if sweep is None else parent_run(outputs_dir(cfg), sweep)


def _weights_before(backbone: Any, cfg: DictConfig) -> dict[str, torch.Tensor]:
    """The weights that adapter=full will change, to measure the change afterwards; nothing for the others."""
    if cfg.adapter.method != "full":
        return {}
    layers = target_layers(backbone.model, backbone.targets)
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


def _check_device(accelerator: str) -> None:
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator} needs a CUDA device and none was found; use trainer=cpu.")


def _print_table(console: Console, title: str, metrics: dict[str, float], cfg: DictConfig) -> None:
    table = Table(title=f"{title}: accuracy of the selected epoch, and cost", title_justify="left", box=SIMPLE)
    rank = metrics.get("adapter/effective_rank")
    cells = {
        "parameters": f"{metrics['cost/trainable_params']:,.0f}",
        "train": f"{metrics['best/train_acc']:.3f}",
        "val": f"{metrics['best/acc']:.3f}",
        "test": f"{metrics['test/acc']:.3f}",
        "gap": f"{metrics['best/train_acc'] - metrics['best/acc']:+.3f}",
        "kept rank": "-" if rank is None else f"{rank:.1f}",
        "step ms": f"{metrics['cost/step_time_ms']:.0f}",
        "peak MB": f"{metrics['cost/peak_memory_mb']:,.0f}",
    }
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    console.print(table)
    console.print(f"Look at the runs: {ui_command(outputs_dir(cfg))}")


def _quiet() -> None:
    """Silence what is no news to a user: device lists, tips, and advice on workers for data that is in memory."""
    for name in ("pytorch_lightning", "lightning.pytorch", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for about in (".*does not have many workers.*", ".*number of training batches.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=about)
