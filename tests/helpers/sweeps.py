"""Synthetic sweeps in a tracking store, and studies as tables."""

import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.tracking import MlflowClient

from foura.report.study import Study, studies
from foura.tracking.store import parent_run
from foura.tracking.tracked_run import start_run

Run = tuple[
    str, dict[str, Any], int, float, float, str
]  # adapter, config, seed, test accuracy, validation accuracy, state
COMMAND = "python train.py -m sweep=s adapter=lora,foura rank=4,16 seed=0,1,2,3,4"


def synthetic(
    outputs: Path,
    sweep: str,
    runs: Iterable[Run],
    tune: Sequence[str] = (),
    epochs: int = 3,
    margins: Mapping[str, float] | None = None,
    dataset: str = "digits",
    items: int | None = None,
    command: str = COMMAND,
) -> None:
    """Record runs as a sweep. items: the size of the validation and test splits; None: not recorded."""
    if not (outputs / "mlflow.db").exists():
        outputs.mkdir(exist_ok=True)
        shutil.copy(_empty_store(), outputs / "mlflow.db")
    parent_run(outputs, sweep, command, tune, margins)
    for adapter, config, seed, test, val, state in runs:
        params = {"backbone.family": "vit", "dataset.format": "None", "seed": seed, "adapter.name": adapter, **config}
        tags = {"sweep": sweep, "adapter": adapter, "backbone": "vit", "dataset": dataset, "seed": seed}
        tags |= {"rank": config.get("rank", 4), "data_fingerprint": f"f{seed}"}
        if items:
            tags |= {"test_items": items, "validation_items": items}
        folder = outputs / "sweeps" / sweep / f"{dataset} {adapter} {config} {seed}"
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(folder.name.encode()).hexdigest()[:16]  # as a run's
        run = start_run(outputs, folder, f"{adapter} {seed}", params, {**tags, "key": key}, sweep)
        for epoch in range(epochs):
            run.log_metrics({"train_eval/acc": val + 0.05, "val/acc": val, "gap/acc": 0.05}, step=epoch)
        if state == "finished":
            run.log_metrics(_metrics(test, val))
        run.close(state)


@functools.cache
def _empty_store() -> Path:
    """A store with its tables and without an experiment: making the tables takes longer than most tests."""
    path = Path(tempfile.mkdtemp()) / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def grid(better: float, seeds: Iterable[int] = range(5), ranks: Sequence[int] = (4, 16)) -> Iterator[Run]:
    """lora and foura, which is better by so much, with noise of 0.002 about a level that the seeds of both share."""
    rng = np.random.default_rng(0)
    for seed in seeds:
        level = rng.normal(0.9, 0.02)
        for rank in ranks:
            for adapter in ("lora", "foura"):
                value = level + (better if adapter == "foura" else 0.0) + rng.normal(0, 0.002)
                yield adapter, {"rank": rank}, seed, value, value, "finished"


def study_of(rows: Iterable[Mapping[str, Any]], margins: Mapping[str, float] | None = None) -> Study:
    """The study of finished runs that are given as rows: adapter, seed, test (accuracy), and config keys."""
    table = []
    for number, row in enumerate(rows):
        config = {key: value for key, value in row.items() if key not in ("adapter", "seed", "test", "cost", "items")}
        base = {"run_id": str(number), "state": "finished", "backbone": "vit", "dataset": "digits", "rank": 4}
        params = {
            f"param:{key}": value
            for key, value in {"backbone.family": "vit", "dataset.format": "None", **config}.items()
        }
        found = {
            **base,
            **config,
            **params,
            "adapter": row["adapter"],
            "seed": row["seed"],
            **_metrics(row["test"], row["test"]),
        }
        found["cost/trainable_params"] = row.get("cost", 1000.0)
        if "items" in row:
            found |= {"test_items": row["items"], "validation_items": row["items"]}
        table.append(found)
    (study,) = studies(pd.DataFrame(table), [], margins)
    return study


def _metrics(test: float, val: float) -> dict[str, float]:
    return {
        "test/acc": test,
        "test/loss": 1 - test,
        "best/acc": val,
        "best/loss": 1 - val,
        "final/loss": 1.1 - val,
        "final/gap_acc": 0.05,
        "final/gap_loss": 0.1,
        "cost/trainable_params": 1000.0,
        "cost/step_time_ms": 5.0,
    }


def runs(*rows) -> pd.DataFrame:
    """Runs of the bundled ViT on digits. A row: adapter, seed, lr, state, and {metric: value}."""
    common = {"backbone": "vit", "dataset": "digits", "rank": 4, "param:backbone.family": "vit"}
    common["param:dataset.format"] = "None"
    table = []
    for number, (adapter, seed, lr, state, metrics) in enumerate(rows):
        own = {"run_id": str(number), "adapter": adapter, "seed": seed, "param:adapter.lr": str(lr), "state": state}
        table.append({**common, **own, **metrics})
    return pd.DataFrame(table)


def result(test: float, val: float, gap: float = 0.1, loss: float = 1.0) -> dict[str, float]:
    """The metrics of a run, as accuracies; loss: on test data."""
    values = {"test/acc": test, "test/loss": loss, "best/acc": val, "best/loss": 1 - val, "final/loss": 1 - val}
    return {**values, "final/gap_acc": gap, "final/gap_loss": gap, "best/gap_acc": -gap}
