"""One run, start to end: config -> data and backbone -> adapter -> training -> evaluation -> tracking."""

import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from peft import PeftModel
from pytorch_lightning import seed_everything
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from foura import ranks
from foura.adapter import freeze_gates
from foura.analysis.overfitting import onset_epoch
from foura.config import outputs_dir, run_key, scientific
from foura.errors import Interrupted, UserError
from foura.families.family import build
from foura.families.task import Task
from foura.files import seal
from foura.methods.attach import adapter_parameters, attach, target_layers
from foura.methods.sora import fold
from foura.run.checkpoint import Checkpoint, place, usable
from foura.run.cost import Cost, peak_memory_mb, step_gflops
from foura.run.drift import check_drift, own_loss
from foura.run.figures import METRIC_NAMES, draw_curves, draw_layers
from foura.run.layers import (
    layer_table,
    mean_effective_rank,
    total_delta_norm,
    write_spectra,
    write_table,
)
from foura.run.loop import Loaders, trainer_of
from foura.run.recorder import EpochMeasures, EpochMetrics, EpochPictures, ProgressLines, SelectedEpoch
from foura.tracking.status import RunStatus, state_of
from foura.tracking.store import TrackedRun, Untracked, continue_run, start_run, ui_command

# what the last table shows of what only some tasks measure
MORE = {
    "test/ppl": "test ppl",
    "memorised/train": "memorised",
    "test/kernel": "distance",
    "test/diversity": "diversity",
    "test/copy_distance": "copying",
}
LOG_WIDTH = 120  # columns, where there is no terminal to ask
ARTIFACTS = (".yaml", ".png", ".csv", ".txt")  # of a run's folder, beside the adapter


def run(cfg: DictConfig, folder: Path, status: RunStatus, sweep: str | None) -> dict[str, float]:
    """Train, select, test and record one adapter; returns its final metrics.

    Of several ranks all come here. What follows the first is the same for all of them, but only its folder and its
    MLflow run are the run's; the others' are thrown away.

    Args:
        folder: the run's own folder; the adapter, figures and tables are left there and in MLflow.
        status: the run's status.json, told the MLflow run and the metrics.
        sweep: the sweep that the run belongs to.

    Raises:
        UserError: anything in the config, the data or the backbone that cannot work; `Diverged` for a NaN loss.
    """
    quiet()
    leads = ranks.rank() == 0
    console = Console(highlight=False, quiet=not leads)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    title = f"{cfg.adapter.name} r{cfg.rank} seed {cfg.seed}"
    _check_device(cfg)
    if cfg.evaluation.drift:
        check_drift(cfg)

    seed_everything(cfg.seed, verbose=False)
    parts = build(cfg)
    data = parts.data
    before = _weights_before(parts.backbone, cfg)
    own = own_loss(cfg.backbone.family, parts, parts.backbone.model, cfg) if cfg.evaluation.drift else None
    loaders = Loaders(data, cfg)
    seed_everything(cfg.seed, verbose=False)  # the adapter starts alike whatever the data needed of the generator
    model = attach(parts.backbone, cfg, steps=loaders.steps())

    checkpoint = Path(ranks.tell(str(status.checkpoint)))
    tracked: Any = Untracked()
    goes_on = leads and _goes_on(cfg, status, checkpoint, model, console)
    if leads:
        tracked, goes_on = _tracked(cfg, status, checkpoint, title, data, sweep, goes_on)
    goes_on = ranks.tell(goes_on)
    status.write("running", run_id=tracked.run_id)
    try:
        task = parts.task(model)
        selected, cost, train_loader = SelectedEpoch(cfg.select), Cost(), loaders.train()
        progress = ProgressLines(console, title, bar=cfg.trainer.enable_progress_bar, lines=sweep is None)
        keeping = Checkpoint(checkpoint, [train_loader.generator, *task.generators], train_loader.batch_sampler)
        metrics_out = EpochMetrics(tracked)
        watchers = [selected, cost, EpochMeasures(), metrics_out, EpochPictures(tracked, folder), progress, keeping]
        trainer = trainer_of(cfg, folder, watchers)
        if goes_on:
            console.print(f"{title}: goes on after {place(checkpoint)}, where it stopped (force=true starts anew)")
        resume: Any = {"ckpt_path": str(checkpoint), "weights_only": True} if goes_on else {}
        try:
            trainer.fit(task, train_loader, loaders.evaluation(), **resume)
        except (KeyboardInterrupt, SystemExit, Interrupted):
            if ranks.world() == 1:
                _save_adapter(selected, task, folder)  # what was earned so far is kept
            raise
        if not task.history:
            raise UserError(
                "training ended before its first evaluation, so there is nothing to select: raise trainer.max_epochs or "
                "trainer.max_steps, or lower trainer.check_val_every_n_epoch."
            )
        final = task.history[-1]
        memory, flops = peak_memory_mb(task.device), ranks.world() * step_gflops(task, loaders.first(task))
        selected.restore(task)
        best = selected.row
        if cfg.adapter.gate == "frozen":
            freeze_gates(task.model, loaders.inputs(task, data.train))
            trainer.validate(task, loaders.evaluation(), verbose=False)
            best = task.history.pop()
        task.at_the_end = lambda: task.final_measures(data, folder)
        trainer.test(task, loaders.test(), verbose=False)

        # of the training data: its part for evaluation has another form where questions are judged
        table = layer_table(task.model.eval(), loaders.inputs(task, data.train, len(data.train_eval)), before)
        metrics = _final_metrics(task, final, best, table)
        if own is not None:
            metrics["drift/loss"] = own_loss(cfg.backbone.family, parts, task.model, cfg) - own
        _save_adapter(selected, task, folder)
        metrics |= {"cost/step_time_ms": cost.step_time_ms(), "cost/peak_memory_mb": memory, "cost/step_gflops": flops}
        metrics["cost/adapter_mb"] = sum(path.stat().st_size for path in (folder / "adapter").iterdir()) / 1e6
        _draw(task, selected.epoch or 0, table, title, folder)
        tracked.log_metrics(metrics)
        for artifact in sorted(folder.iterdir()):
            if artifact.suffix in ARTIFACTS or artifact.name == "adapter":
                tracked.log_artifact(artifact)
        if not tracked.close("finished"):
            console.print(
                f"tracking is behind ({tracked.outbox.error}): `foura sync` delivers what is kept in {folder}"
            )
        status.fields |= {"metrics": metrics, "run_id": tracked.run_id}
    except BaseException as error:
        tracked.close(state_of(error))
        raise
    if sweep is None:
        _print_table(console, title, metrics, task.headline, cfg)
    return metrics


def _goes_on(cfg: DictConfig, status: RunStatus, checkpoint: Path, model: Any, console: Console) -> bool:
    """Whether this experiment was interrupted and left a checkpoint of this model."""
    if cfg.force or not status.goes_on(run_key(cfg)) or not checkpoint.exists():
        return False
    found = usable(checkpoint, adapter_parameters(model))
    if not found:
        console.print(f"{checkpoint.name} of before is damaged, or of another model: the run starts anew")
    return found


def _tracked(
    cfg: DictConfig, status: RunStatus, checkpoint: Path, title: str, data: Any, sweep: str | None, goes_on: bool
) -> tuple[TrackedRun, bool]:
    """(the run in MLflow, whether it goes on there): the same one as before, where the store still has it.

    Otherwise the run starts anew, and in a sweep whatever its folder or its key left in the store is hidden.
    """
    outputs, folder = outputs_dir(cfg), checkpoint.parent
    if goes_on:
        tracked = continue_run(outputs, folder)
        if tracked is not None:
            return tracked, True
    checkpoint.unlink(missing_ok=True)
    tags = _tags(cfg, data, sweep)
    return start_run(outputs, folder, title, scientific(cfg), tags, sweep, status.previous.get("run_id")), False


def _final_metrics(task: Task, final: dict[str, float], best: dict[str, float], table: list[Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in task.metrics:
        metrics |= {f"final/{name}": final[f"val/{name}"], f"final/gap_{name}": final[f"gap/{name}"]}
        metrics |= {f"best/{name}": best[f"val/{name}"]}
    metrics |= {
        f"best/train_{task.headline}": best[f"train_eval/{task.headline}"],
        "overfit/onset_epoch": onset_epoch(
            [row["epoch"] for row in task.history], [row["val/loss"] for row in task.history]
        ),
        "cost/trainable_params": float(sum(p.numel() for p in task.model.parameters() if p.requires_grad)),
        "adapter/delta_norm": total_delta_norm(table),
        **task.tested,
    }
    rank = mean_effective_rank(table)
    return metrics if rank is None else {**metrics, "adapter/effective_rank": rank}


def _save_adapter(selected: SelectedEpoch, task: Task, folder: Path) -> None:
    """Write the selected epoch's adapter beside, then rename: `folder/adapter` is whole or not there."""
    if selected.epoch is None:
        return
    if task.trainer.interrupted:
        selected.restore(task)
    fold(task.model)
    target, scratch = folder / "adapter", folder / ".adapter.writing"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    state = {name: tensor.cpu().contiguous() for name, tensor in adapter_parameters(task.model).items()}
    if isinstance(task.model, PeftModel):
        whole: Any = {"state_dict": {**task.model.state_dict(), **state}}
        task.model.save_pretrained(str(scratch), save_embedding_layers=False, **whole)
    else:
        save_file(state, scratch / "model.safetensors", metadata={"format": "pt"})
    for written in scratch.glob("*.safetensors"):
        seal(written)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)


def _draw(task: Task, selected: int, table: list[dict[str, Any]], title: str, folder: Path) -> None:
    draw_curves(task.history, list(task.metrics), selected, title, folder / "curves.png")
    if table:
        write_table(table, folder / "layers.csv")
        write_spectra(table, folder / "spectra.csv")
        draw_layers(table, title, folder / "layers.png")


def _tags(cfg: DictConfig, data: Any, sweep: str | None) -> dict[str, Any]:
    adapter = cfg.adapter
    foura = adapter.method == "foura"
    return {
        "sweep": sweep or "",
        "key": run_key(cfg),
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


def _weights_before(backbone: Any, cfg: DictConfig) -> dict[str, torch.Tensor]:
    """The weights that adapter=full will change, to measure the change afterwards; nothing for the others."""
    if cfg.adapter.method != "full":
        return {}
    layers: dict[str, Any] = target_layers(backbone.model, backbone.targets)
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


def _check_device(cfg: DictConfig) -> None:
    accelerator, found = cfg.trainer.accelerator, torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not found:
        raise UserError(f"trainer.accelerator={accelerator} needs a CUDA device and none was found; use trainer=cpu.")
    several = cfg.trainer.strategy != "auto"
    if several and accelerator != "cpu" and 0 < found < int(cfg.trainer.devices):
        raise UserError(f"trainer.devices={cfg.trainer.devices}: this machine has {found} CUDA devices.")
    method, frozen = cfg.adapter.method, cfg.adapter.gate == "frozen"
    if cfg.trainer.strategy == "fully_shard" and (method in ("adalora", "sora") or frozen or cfg.backbone.load_in):
        raise UserError(
            f"trainer=fsdp cuts weights into parts, which adapter={cfg.adapter.name} or backbone.load_in cannot have: use "
            "trainer=ddp (a gate can be frozen later: foura export --freeze)."
        )


def _print_table(console: Console, title: str, metrics: dict[str, float], shown: str, cfg: DictConfig) -> None:
    name = METRIC_NAMES.get(shown, shown)
    table = Table(title=f"{title}: {name} of the selected epoch, and cost", title_justify="left", box=SIMPLE)
    rank = metrics.get("adapter/effective_rank")
    train, val = metrics[f"best/train_{shown}"], metrics[f"best/{shown}"]
    cells = {
        "parameters": f"{metrics['cost/trainable_params']:,.0f}",
        "train": f"{train:.3f}",
        "val": f"{val:.3f}",
        "test": f"{metrics[f'test/{shown}']:.3f}",
        "gap": f"{val - train if shown == 'loss' else train - val:+.3f}",
        **{label: f"{metrics[key]:.3f}" for key, label in MORE.items() if key in metrics},
        "kept rank": "-" if rank is None else f"{rank:.1f}",
        "step ms": f"{metrics['cost/step_time_ms']:.0f}",
        "peak MB": f"{metrics['cost/peak_memory_mb']:,.0f}",
    }
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    console.print(table)
    console.print(f"Look at the runs: {ui_command(outputs_dir(cfg))}")


def quiet() -> None:
    """Silence what is no news to a user: device lists, tips, and advice on workers for data that is in memory."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for about in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*LeafSpec.*",
        ".*Kernel Inception Distance.*",
        ".*dataloader is not resumable.*",  # ours is: tasks/checkpoint.py
        ".*srun. command is available.*",
    ):
        warnings.filterwarnings("ignore", message=about)
