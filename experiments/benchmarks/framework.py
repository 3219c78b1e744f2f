"""A `train.py` run after its start-up against a bare PyTorch loop: same model, data, adapter, evaluations."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import seed_everything
from rich.console import Console
from timing import Row, row
from torch import Tensor, nn

import foura
from foura.config import register
from foura.families import build, family_of
from foura.families.family import Parts
from foura.logs import quiet
from foura.methods.attach import attach
from foura.run.checkpoint import Checkpoint
from foura.run.cost import Cost
from foura.run.loop import Loaders, trainer_of
from foura.run.progress import ProgressDisplay
from foura.run.recorder import Recorder
from foura.tracking.tracked_run import start_run

CONF = Path(__file__).resolve().parents[2] / "conf"


def measure(rounds: int, epochs: int, say: Callable[[str], None]) -> list[Row]:
    """Seconds of the default experiment at rank 16, and the ratio to the bare loop's of the same round."""
    register()
    quiet()
    rows: list[Row] = []
    for adapter in ("lora", "foura_dct"):
        say(f"framework, adapter={adapter}")
        times: dict[str, list[float]] = {"framework": [], "bare loop": []}
        for number in range(rounds + 1):
            with tempfile.TemporaryDirectory() as folder:
                with initialize_config_dir(str(CONF), version_base="1.3"):
                    keys = [f"adapter={adapter}", f"trainer.max_epochs={epochs}", f"outputs={folder}"]
                    cfg = compose("config", keys)
                both = {
                    "framework": lambda cfg=cfg, folder=folder: _framework(cfg, Path(folder)),
                    "bare loop": lambda cfg=cfg: _bare(cfg),
                }
                for name in sorted(both, reverse=number % 2 == 1):
                    seconds = both[name]()
                    if number:  # the first round warms up
                        times[name].append(seconds)
        rows += [
            row(f"framework {adapter}", name, "run", "s", values, times["bare loop"]) for name, values in times.items()
        ]
    return rows


def _parts(cfg: Any) -> tuple[nn.Module, Loaders, Parts]:
    seed_everything(cfg.seed, verbose=False)
    parts = build(cfg)
    loaders = Loaders(parts.data, cfg)
    return attach(parts.backbone, cfg, steps=loaders.steps()), loaders, parts


def _framework(cfg: Any, folder: Path) -> float:
    model, loaders, parts = _parts(cfg)
    tracked = start_run(folder, folder, "bench", {}, {"key": "bench"}, None)
    task = parts.task(model)
    metric = family_of(cfg).curve(cfg.dataset.format)
    progress = ProgressDisplay(Console(quiet=True), "bench", metric, bar=False, lines=True)
    recorder = Recorder(cfg.select, tracked, progress, folder)
    keeper = Checkpoint(folder / "checkpoint.pt", [loaders.train.generator], loaders.train.batch_sampler)
    start = time.perf_counter()
    trainer_of(cfg, folder, [recorder, Cost(), keeper]).fit(task, loaders.train, loaders.evaluation())
    return time.perf_counter() - start


def _bare(cfg: Any) -> float:
    model, loaders, _ = _parts(cfg)
    start = time.perf_counter()
    train, evaluation, options = loaders.train, loaders.evaluation(), cfg.optimizer
    groups = foura.param_groups(model, lr=options.lr, gate_lr=options.gate_lr)
    optimizer = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cfg.trainer.max_epochs * len(train))
    for _ in range(cfg.trainer.max_epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        for loader in evaluation:
            _evaluate(model, loader)
    return time.perf_counter() - start


@torch.no_grad()
def _evaluate(model: nn.Module, loader: Any) -> tuple[float, float]:
    loss, right, count = torch.zeros(()), torch.zeros(()), 0
    for images, labels in loader:
        logits: Tensor = model(images)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
        right += (logits.argmax(-1) == labels).sum()
        count += len(labels)
    return float(loss) / count, float(right) / count
