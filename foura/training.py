"""The DataLoaders of a run, and its Trainer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from foura.tasks.task import Task


class Loaders:
    """The DataLoaders of a run. Training order depends on the seed alone, not on the adapter."""

    def __init__(self, data: Any, cfg: DictConfig) -> None:
        self.data, self.cfg = data, cfg
        self.options: dict[str, Any] = {"num_workers": cfg.dataset.num_workers, "collate_fn": data.collate}

    def train(self) -> DataLoader:
        order = torch.Generator().manual_seed(self.cfg.seed)
        items: Any = torch.utils.data.ConcatDataset([self.data.train] * self.cfg.dataset.repeats)
        return DataLoader(items, self.cfg.dataset.batch_size, shuffle=True, generator=order, **self.options)

    def evaluation(self) -> list[DataLoader]:
        return [self._fixed(self.data.train_eval), self._fixed(self.data.validation)]

    def test(self) -> DataLoader:
        return self._fixed(self.data.test)

    def inputs(self, task: Task, dataset: Any, limit: int | None = None) -> Iterator[Any]:
        """What the model is called with, for (the first `limit` items of) a dataset, on the task's device."""
        some = dataset if limit is None else torch.utils.data.Subset(dataset, range(min(limit, len(dataset))))
        for batch in self._fixed(some):
            yield task.inputs(move_data_to_device(batch, task.device))

    def first(self, task: Task) -> Any:
        """The first training items as one batch, on the task's device."""
        some = torch.utils.data.Subset(self.data.train, range(min(self.cfg.dataset.batch_size, len(self.data.train))))
        (batch,) = DataLoader(some, self.cfg.dataset.batch_size, collate_fn=self.data.collate)
        return move_data_to_device(batch, task.device)

    def steps(self) -> int:
        batches = len(self.train())
        epochs = self.cfg.trainer.max_epochs or 1
        return max(1, epochs * batches // self.cfg.trainer.accumulate_grad_batches)

    def _fixed(self, dataset: Any) -> DataLoader:
        return DataLoader(dataset, self.cfg.dataset.eval_batch_size, **self.options)


def trainer_of(cfg: DictConfig, folder: Path, callbacks: list[Any]) -> Trainer:
    arguments: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    arguments["enable_progress_bar"] = False  # ours shows the whole run with its ETA
    ours: Any = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**arguments, **ours, callbacks=callbacks, default_root_dir=str(folder))
