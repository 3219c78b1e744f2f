"""The DataLoaders of a run, and its Trainer: on one process or on several, which then share every batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from foura import ranks
from foura.errors import UserError
from foura.families.task import Task


class Batches:
    """The training batches of a run as lists of items, in an order of the generator's; each rank gets its share of each.

    Their union over ranks is what one process would train on, so `dataset.batch_size` is the batch of all ranks together.

    Attributes:
        began: the generator's state when the current epoch's order was drawn. resume: {"order": the generator's state,
            "batches": how many of the epoch are done} of an epoch to be gone on with, {} for none; where none are done,
            the state is that before the epoch.
    """

    def __init__(self, items: Any, batch_size: int, generator: torch.Generator, shuffled: bool) -> None:
        self.items, self.batch_size, self.generator = items, batch_size, generator
        order: Any = RandomSampler(items, generator=generator) if shuffled else SequentialSampler(items)
        self.whole = BatchSampler(order, batch_size, drop_last=False)
        self.began, self.resume = generator.get_state(), dict[str, Any]()

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[list[int]]:
        resume, self.resume = self.resume, {}
        if resume:
            self.generator.set_state(resume["order"])
            if not resume["batches"]:
                # as a DataLoader does at the start of an epoch, which can be before a checkpoint is read
                torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        self.began = self.generator.get_state()
        for number, batch in enumerate(self.whole):
            if number >= resume.get("batches", 0):
                # a rank without a share keeps step with one item, which counts for nothing
                yield batch[ranks.rank() :: ranks.world()] or batch[:1]

    def size(self, number: int) -> int:
        """How many items batch `number` of an epoch has on all ranks together."""
        return min(self.batch_size, len(self.items) - number * self.batch_size)


class Loaders:
    """The DataLoaders of a run. Training order depends on the seed alone, not on the adapter."""

    def __init__(self, data: Any, cfg: DictConfig) -> None:
        self.data, self.cfg = data, cfg
        self.options: dict[str, Any] = {"num_workers": cfg.dataset.num_workers, "collate_fn": data.collate}

    def train(self) -> DataLoader:
        order = torch.Generator().manual_seed(self.cfg.seed)
        items: Any = torch.utils.data.ConcatDataset([self.data.train] * self.cfg.dataset.repeats)
        batches: Any = Batches(items, self.cfg.dataset.batch_size, order, shuffled=not self.cfg.trainer.overfit_batches)
        return DataLoader(items, batch_sampler=batches, generator=order, **self.options)

    def evaluation(self) -> list[DataLoader]:
        return [self._shared(self.data.train_eval, "train_eval"), self._shared(self.data.validation, "validation")]

    def test(self) -> DataLoader:
        return self._shared(self.data.test, "test")

    def inputs(self, task: Task, dataset: Any, limit: int | None = None) -> Iterator[Any]:
        """What the model is called with, for (the first `limit` items of) a dataset, on the task's device."""
        some = dataset if limit is None else torch.utils.data.Subset(dataset, range(min(limit, len(dataset))))
        for batch in self._fixed(some):
            yield task.inputs(move_data_to_device(batch, task.device))

    def first(self, task: Task) -> Any:
        """The first training items as one rank's share of a batch, on the task's device."""
        share = self.cfg.dataset.batch_size // ranks.world()
        some = torch.utils.data.Subset(self.data.train, range(min(share, len(self.data.train))))
        (batch,) = DataLoader(some, share, collate_fn=self.data.collate)
        return move_data_to_device(batch, task.device)

    def steps(self) -> int:
        batches = len(self.train())
        epochs = self.cfg.trainer.max_epochs or 1
        return max(1, epochs * batches // self.cfg.trainer.accumulate_grad_batches)

    def _fixed(self, dataset: Any) -> DataLoader:
        return DataLoader(dataset, self.cfg.dataset.eval_batch_size, **self.options)

    def _shared(self, dataset: Any, name: str) -> DataLoader:
        """This rank's part of an evaluation: as many batches on every rank, none of them empty, no item twice."""
        world = ranks.world()
        if world == 1:
            return self._fixed(dataset)
        if len(dataset) < world:
            raise UserError(
                f"the {name} data has {len(dataset)} items, which {world} processes cannot share; use fewer."
            )
        parts = torch.arange(len(dataset)).tensor_split(world)
        share = max(1, self.cfg.dataset.eval_batch_size // world)
        count = min(-(-len(parts[0]) // share), len(parts[-1]))
        batches: list[Tensor] = list(parts[ranks.rank()].tensor_split(count))
        return DataLoader(dataset, batch_sampler=[batch.tolist() for batch in batches], **self.options)


class FullyShard(ModelParallelStrategy):
    """FSDP2: every rank keeps a part of each weight (`Task.configure_model` shards them), and checkpoints are whole."""

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        # after an evaluation the outermost weights are still whole, and whole ones are not those that the optimizer knows:
        # its state of them would be left out of a checkpoint
        assert self.model is not None
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return {}  # nothing is gathered here: a task's checkpoint holds what it trains, and no frozen weight


def trainer_of(cfg: DictConfig, folder: Path, callbacks: list[Any]) -> Trainer:
    arguments: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    arguments["enable_progress_bar"] = False  # ours shows the whole run with its ETA
    processes = ranks.wanted(cfg)
    if arguments["strategy"] == "fully_shard":
        arguments["strategy"] = FullyShard(processes)
    if processes > 1:
        arguments["devices"] = int(arguments["devices"])
    ours: Any = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # ours share what one process would have
    }
    return Trainer(**arguments, **ours, callbacks=callbacks, default_root_dir=str(folder))
