"""The files and final metrics of a run: its adapter, its tables and figures, and the last line on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from peft import PeftModel
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from foura.analysis.overfitting import onset_epoch
from foura.atomic import put, remove
from foura.config import outputs_dir
from foura.families import family_of
from foura.families.task import Task
from foura.files import from_here, write_checksum, write_csv
from foura.metrics import TABLE, shown
from foura.run.figures import draw_curves, draw_layers
from foura.run.gate_figure import draw_gates
from foura.run.layers import (
    mean_effective_rank,
    mean_open_std,
    total_delta_norm,
    write_open_counts,
    write_spectra,
    write_table,
)
from foura.run.recorder import Recorder
from foura.tracking.tracked_run import TrackedRun

SUFFIXES = (".yaml", ".png", ".csv", ".txt")  # of the files that are logged, beside the adapter


def save_adapter(task: Task, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write an adapter to `folder`/adapter in PEFT's format, or the trained weights of a bare model.

    It is written beside and renamed, so that the folder is complete or does not exist. The model is not changed.

    Args:
        state: the `adapter_parameters` of the epoch to save.
    """
    target, scratch = folder / "adapter", folder / ".adapter.writing"
    remove(scratch)
    scratch.mkdir(parents=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if isinstance(task.model, PeftModel):
        whole: Any = {"state_dict": task.method.saved(task.model, {**task.model.state_dict(), **kept})}
        task.model.save_pretrained(str(scratch), save_embedding_layers=False, **whole)
    else:
        save_file(kept, scratch / "model.safetensors", metadata={"format": "pt"})
    for written in scratch.glob("*.safetensors"):
        write_checksum(written)
    put(scratch, target)


def final_metrics(
    task: Task, cfg: DictConfig, best: dict[str, float], table: list[dict[str, Any]], folder: Path
) -> dict[str, float]:
    """The metrics at the end of a run, by their names in MLflow.

    Args:
        best: the selected epoch's row of the history. table: rows of `layer_table`. folder: of the run, with its adapter.
    """
    metrics: dict[str, float] = {}
    final, curve = task.history[-1], family_of(cfg).curve(cfg.dataset.format).key
    for name in task.metrics:
        metrics |= {f"final/{name}": final[f"val/{name}"], f"final/gap_{name}": final[f"gap/{name}"]}
        metrics |= {f"best/{name}": best[f"val/{name}"]}
    epochs, losses = [row["epoch"] for row in task.history], [row["val/loss"] for row in task.history]
    metrics |= {
        f"best/train_{curve}": best[f"train_eval/{curve}"],
        "overfit/onset_epoch": onset_epoch(epochs, losses),
        "cost/trainable_params": float(sum(p.numel() for p in task.model.parameters() if p.requires_grad)),
        "cost/adapter_mb": sum(path.stat().st_size for path in (folder / "adapter").iterdir()) / 1e6,
        **task.tested,
    }
    of_update = {"adapter/delta_norm": total_delta_norm(table), "adapter/effective_rank": mean_effective_rank(table)}
    return metrics | {key: value for key, value in of_update.items() if value is not None}


def draw(task: Task, recorder: Recorder, table: list[dict[str, Any]], title: str, folder: Path) -> None:
    """Write curves.png, for a model with adapted layers layers.csv, spectra.csv and layers.png, and of gates gates.png."""
    draw_curves(task.history, task.metrics, recorder.epoch or 0, title, folder / "curves.png")
    if table:
        write_table(table, folder / "layers.csv")
        write_spectra(table, folder / "spectra.csv")
        draw_layers(table, title, folder / "layers.png")
    if any(row.get("open_counts") for row in table) and recorder.ranks_by_epoch:
        write_csv(recorder.ranks_by_epoch, folder / "ranks_by_epoch.csv")
        write_open_counts(table, folder / "open_counts.csv")
        draw_gates(table, recorder.ranks_by_epoch, title, folder / "gates.png")


def log_artifacts(tracked: TrackedRun, folder: Path) -> None:
    """Log the adapter, the config, and the figures and tables in the run's folder."""
    for artifact in sorted(folder.iterdir()):
        if artifact.suffix in SUFFIXES or artifact.name == "adapter":
            tracked.log_artifact(artifact)


def print_result(
    console: Console,
    title: str,
    metrics: dict[str, float],
    table: list[dict[str, Any]],
    cfg: DictConfig,
    folder: Path,
) -> None:
    """Print a table of the run's main metrics, the place of its adapter, and the command that shows the runs."""
    metric = family_of(cfg).curve(cfg.dataset.format)
    key = metric.key
    heading = f"{title}: {metric.label} of the selected epoch, and cost"
    train, val = metrics[f"best/train_{key}"], metrics[f"best/{key}"]
    cells = {
        "parameters": f"{metrics['cost/trainable_params']:,.0f}",
        "train": f"{train:.3f}",
        "val": f"{val:.3f}",
        **({"test": f"{metrics[f'test/{key}']:.3f}"} if cfg.evaluation.test else {}),
        "gap": f"{metric.gap(train, val):+.3f}",
        **{other.label: f"{metrics[other.column]:.3f}" for other in shown(TABLE) if other.column in metrics},
        "open ranks": open_ranks(table),
        "step ms": f"{metrics['cost/step_time_ms']:.0f}",
        "peak MB": f"{metrics['cost/peak_memory_mb']:,.0f}",
    }
    console.print(_table_of(heading, cells, console.width))
    outputs, adapter = from_here(outputs_dir(cfg)), from_here(folder / "adapter")
    console.print(f"adapter: {adapter} (its README.md says how to load it)", soft_wrap=True)
    console.print(f"Look at the runs: foura ui{'' if outputs == 'outputs' else ' ' + outputs} --open", soft_wrap=True)


def open_ranks(table: list[dict[str, Any]]) -> str:
    """The mean over layers of `layer_table`, and for gates that depend on the input the standard deviation over inputs."""
    rank, spread = mean_effective_rank(table), mean_open_std(table)
    if rank is None:
        return "-"
    return f"{rank:.1f}" if spread is None else f"{rank:.1f} ± {spread:.1f}"


def _table_of(heading: str, cells: Mapping[str, str], width: int) -> Table:
    """One row, or a row per cell where the terminal is too narrow for all of them: numbers are never cut."""
    table = Table(title=heading, title_justify="left", box=SIMPLE)
    if width < sum(max(len(name), len(value)) + 3 for name, value in cells.items()):
        table.show_header = False
        table.add_column()
        table.add_column(justify="right")
        for name, value in cells.items():
            table.add_row(name, value)
        return table
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    return table
