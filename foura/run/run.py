"""One run, start to end: config -> data and backbone -> adapter -> training -> test -> tracking."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import Trainer, seed_everything
from rich.console import Console

from foura import distributed
from foura.backbone import describe_share
from foura.errors import Interrupted, UserError
from foura.escape import printable
from foura.families import build, family_of
from foura.families.family import Parts
from foura.families.task import Task
from foura.logs import quiet
from foura.methods import method_of
from foura.methods.attach import attach
from foura.methods.state import adapter_parameters
from foura.run.artifacts import draw, final_metrics, log_artifacts, print_result, save_adapter
from foura.run.before import Before, check_forgetting
from foura.run.card import write_card
from foura.run.checkpoint import Checkpoint
from foura.run.compiling import compiled
from foura.run.cost import Cost, step_gflops
from foura.run.facts import facts
from foura.run.layers import layer_table
from foura.run.loop import Loaders, check_devices, trainer_of
from foura.run.progress import ProgressDisplay, make_console
from foura.run.recorder import FinalMeasures, Recorder
from foura.run.start_from import start_from
from foura.run.tracked import tracked_run
from foura.tracking.status import RunStatus
from foura.tracking.tracked_run import TrackedRun


def run(cfg: DictConfig, folder: Path, status: RunStatus, sweep: str | None) -> dict[str, float]:
    """Train, select, test and record one adapter; returns its final metrics.

    Every process of the run executes this. Only rank 0 writes to the run's folder and to MLflow.

    Args:
        folder: gets the adapter, figures and tables. status: gets the id in MLflow and the metrics.
        sweep: the sweep that the run belongs to.

    Raises:
        UserError: a config, data or a backbone that cannot work; `Diverged` for a NaN loss.
    """
    quiet()
    console, title = make_console(not distributed.is_main()), _title(cfg)
    check_devices(cfg)
    check_forgetting(cfg)
    seed_everything(cfg.seed, verbose=False)
    parts = build(cfg)
    before, loaders = Before(parts, cfg), Loaders(parts.data, cfg)
    seed_everything(cfg.seed, verbose=False)  # the adapter starts alike, whatever the data drew from the generator
    about = _say(console, title, parts, cfg, sweep, folder)
    model = start_from(attach(parts.backbone, cfg, steps=loaders.steps()), cfg)
    with tracked_run(cfg, status, parts.data, model, about, sweep, console) as (tracked, checkpoint, resumed):
        task, cost = parts.task(model), Cost()
        task.before, task.steps = before.parameters, loaders.steps()
        recorder = Recorder(cfg.select, tracked, _display(console, title, cfg, sweep), folder)
        keeper = Checkpoint(checkpoint, [loaders.train.generator, *task.generators], loaders.train.batch_sampler)
        trainer = trainer_of(cfg, folder, [recorder, cost, FinalMeasures(parts.data, folder), keeper])
        _fit(trainer, task, recorder, loaders, checkpoint if resumed else None, folder)
        # from here on, whatever fails: the adapter is saved, and by the last checkpoint the same command only measures
        costs = _costs(task, cost, loaders)
        best = _selected(trainer, task, recorder, loaders, folder)
        _test(trainer, task, loaders, cfg)
        table = _table(task, loaders, before)
        metrics = final_metrics(task, cfg, best, table, folder) | before.forgetting(parts, task.model, cfg) | costs
        draw(task, recorder, table, title, folder)
        _record(metrics, about, parts, cfg, tracked, status, folder)
    if sweep is None:
        print_result(console, title, metrics, table, cfg, folder)
    return metrics


def _title(cfg: DictConfig) -> str:
    return printable(f"{cfg.adapter.name} r{cfg.rank} seed {cfg.seed}")


def _display(console: Console, title: str, cfg: DictConfig, sweep: str | None) -> ProgressDisplay:
    metric = family_of(cfg).curve(cfg.dataset.format)
    return ProgressDisplay(console, title, metric, bar=cfg.trainer.enable_progress_bar, lines=sweep is None)


def _say(console: Console, title: str, parts: Parts, cfg: DictConfig, sweep: str | None, folder: Path) -> str:
    """Print what the run is about, which is returned, and the share of the weights that is adapted.

    Of a sweep, the first run alone prints: a sweep has a line per run.
    """
    about = facts(cfg, parts.data)
    if sweep is None or len(list(folder.parent.glob("*/status.json"))) == 1:
        console.print(about, soft_wrap=True)
    if sweep is None and method_of(cfg).trained is None:
        backbone = parts.backbone
        console.print(f"{title}: {describe_share(backbone.model, backbone.targets, backbone.head)}")
    return about


def _fit(
    trainer: Trainer, task: Task, recorder: Recorder, loaders: Loaders, checkpoint: Path | None, folder: Path
) -> None:
    """Train, from the checkpoint if there is one, and save the selected epoch's adapter; that of an interrupted run too."""
    resume: dict[str, Any] = {} if checkpoint is None else {"ckpt_path": str(checkpoint), "weights_only": True}
    try:
        with compiled(task):
            trainer.fit(task, loaders.train, loaders.evaluation(), **resume)
    except (KeyboardInterrupt, SystemExit, Interrupted):
        if recorder.epoch is not None:
            save_adapter(task, recorder.state, folder)
        raise
    if recorder.epoch is None:
        raise UserError(
            "training ended before its first evaluation, so there is nothing to select: raise trainer.max_epochs or "
            "trainer.max_steps, or lower trainer.check_val_every_n_epoch."
        )
    save_adapter(task, recorder.state, folder)


def _costs(task: Task, cost: Cost, loaders: Loaders) -> dict[str, float]:
    """Time, memory and operations of a training step, measured on the model as it was trained."""
    memory = cost.peak_memory_mb()  # before the step below
    flops = distributed.world_size() * step_gflops(task, loaders.first(task))
    return {"cost/step_time_ms": cost.step_time_ms(), "cost/peak_memory_mb": memory, "cost/step_gflops": flops}


def _selected(trainer: Trainer, task: Task, recorder: Recorder, loaders: Loaders, folder: Path) -> dict[str, float]:
    """Restore the selected epoch and return its row of the history, evaluated again if the method changes the model now."""
    recorder.restore(task)
    if not task.method.after_training(
        task.model, task.adapter_config, lambda: loaders.inputs(task, loaders.data.train)
    ):
        return recorder.row
    trainer.validate(task, loaders.evaluation(), verbose=False)
    save_adapter(task, adapter_parameters(task.model), folder)
    return task.history.pop()


def _test(trainer: Trainer, task: Task, loaders: Loaders, cfg: DictConfig) -> None:
    """Test the selected epoch, once; a tuning run does not use the test data."""
    if cfg.evaluation.test:
        trainer.test(task, loaders.test(), verbose=False)


def _record(
    metrics: dict[str, float],
    about: str,
    parts: Parts,
    cfg: DictConfig,
    tracked: TrackedRun,
    status: RunStatus,
    folder: Path,
) -> None:
    write_card(cfg, folder, about, metrics, parts.data)
    tracked.log_metrics(metrics)
    log_artifacts(tracked, folder)
    status.fields |= {"metrics": metrics, "curve": family_of(cfg).curve(cfg.dataset.format).key}


def _table(task: Task, loaders: Loaders, before: Before) -> list[dict[str, Any]]:
    inputs = loaders.inputs(task, loaders.data.observed)
    return layer_table(task.model.eval(), task.method, inputs, before.weights)
