"""The DataLoaders and the Trainer of a run: of one process, or of several, which share every batch."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torchmetrics.aggregation import BaseAggregator

from foura import distributed
from foura.errors import UserError, reason
from foura.families.task import Task
from foura.methods import method_of
from foura.run.processes import process_count
from foura.run.steps import check_limits, optimizer_steps

BATCHES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")


class Batches:
    """The training batches of a run as lists of items, in an order drawn by the generator; each process gets its share.

    The union over processes is the batch that one process would train on, so `dataset.batch_size` is that of all processes.

    Attributes:
        began: the generator's state when the current epoch's order was drawn.
        resume: {"order": the generator's state, "batches": how many of the epoch are done} of an epoch to resume, {} for
            none; where none are done, the state is that before the epoch.
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
                # a process without items takes one dummy item with zero weight, to stay in step
                yield batch[distributed.rank() :: distributed.world_size()] or batch[:1]

    def size(self, number: int) -> int:
        """The number of items that batch `number` of an epoch has in all processes together."""
        return min(self.batch_size, len(self.items) - number * self.batch_size)


class Loaders:
    """The DataLoaders of a run. The order of training depends on the seed, not on the adapter."""

    def __init__(self, data: Any, cfg: DictConfig) -> None:
        self.data, self.cfg = data, cfg
        self.options: dict[str, Any] = {"num_workers": cfg.dataset.num_workers, "collate_fn": data.collate}

    @functools.cached_property
    def train(self) -> DataLoader:
        """Training batches, shuffled anew for each epoch."""
        order = torch.Generator().manual_seed(self.cfg.seed)
        items: Any = torch.utils.data.ConcatDataset([self.data.train] * self.cfg.dataset.repeats)
        batches: Any = Batches(items, self.cfg.dataset.batch_size, order, shuffled=not self.cfg.trainer.overfit_batches)
        return DataLoader(items, batch_sampler=batches, generator=order, **self.options)

    def evaluation(self) -> list[DataLoader]:
        """The fixed part of the training data, and the validation data: the order of `families.task.EVALUATIONS`."""
        return [self._shared(self.data.train_eval, "train_eval"), self._shared(self.data.validation, "validation")]

    def test(self) -> DataLoader:
        """The test data."""
        return self._shared(self.data.test, "test")

    def inputs(self, task: Task, dataset: Any) -> Iterator[Any]:
        """Model inputs for a dataset, on the task's device."""
        for batch in self._fixed(dataset):
            yield task.inputs(move_data_to_device(batch, task.device))

    def first(self, task: Task) -> Any:
        """The first training items as one process's share of a batch, on the task's device."""
        share = self.cfg.dataset.batch_size // distributed.world_size()
        some = torch.utils.data.Subset(self.data.train, range(min(share, len(self.data.train))))
        (batch,) = DataLoader(some, share, collate_fn=self.data.collate)
        return move_data_to_device(batch, task.device)

    def steps(self) -> int:
        """The number of optimizer steps that the run will make."""
        evaluated = min(len(loader) for loader in self.evaluation())
        check_limits(self.cfg.trainer, {"train": len(self.train), "val": evaluated, "test": len(self.test())})
        return optimizer_steps(self.cfg.trainer, len(self.train))

    def _fixed(self, dataset: Any) -> DataLoader:
        return DataLoader(dataset, self.cfg.dataset.eval_batch_size, **self.options)

    def _shared(self, dataset: Any, name: str) -> DataLoader:
        """This process's part of an evaluation: as many batches as every process has, none of them empty, no item twice."""
        world = distributed.world_size()
        if world == 1:
            return self._fixed(dataset)
        if len(dataset) < world:
            raise UserError(
                f"the {name} data has {len(dataset)} items, which {world} processes cannot share; use fewer."
            )
        parts = torch.arange(len(dataset)).tensor_split(world)
        share = max(1, self.cfg.dataset.eval_batch_size // world)
        count = min(-(-len(parts[0]) // share), len(parts[-1]))
        batches: list[Tensor] = list(parts[distributed.rank()].tensor_split(count))
        return DataLoader(dataset, batch_sampler=[batch.tolist() for batch in batches], **self.options)


class FullyShard(ModelParallelStrategy):
    """FSDP2: every process keeps a part of each weight (`Task.configure_model` shards them), and checkpoints are whole."""

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        # After an evaluation the outermost weights are still gathered. The optimizer knows the sharded ones: its state of
        # the gathered ones would be left out of a checkpoint.
        assert self.model is not None
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return {}  # nothing is gathered here: `Task.on_save_checkpoint` adds what is trained


class EvaluatedEnd(Callback):
    """Evaluates after the last step of training, also in the middle of an epoch and between two evaluations."""

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        self._last_epoch(trainer)  # Lightning does not start an epoch that is resumed within

    def on_train_epoch_start(self, trainer: Trainer, task: Any) -> None:
        self._last_epoch(trainer)

    def on_train_batch_end(self, trainer: Trainer, task: Any, out: Any, batch: Any, batch_idx: int) -> None:
        if 0 < trainer.max_steps <= trainer.global_step:
            self._every_epoch(trainer)
            trainer.should_stop = True  # Lightning evaluates then, and not where it only counts steps

    def _last_epoch(self, trainer: Trainer) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._every_epoch(trainer)

    def _every_epoch(self, trainer: Trainer) -> None:
        if trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1


class TruePrecision(Callback):
    """For trainer.precision=bf16-true, 16-true and 64-true, in which the weights themselves are.

    The model converts its inputs to the precision of its weights: a Trainer's loops do that to each batch, but the model is
    called outside of them too, to generate images and to measure. Means and sums of metrics stay in float32: added up in
    bfloat16, a count of items would stop at 256.
    """

    def __init__(self) -> None:
        self.hook: Any = None

    def setup(self, trainer: Trainer, task: Any, stage: str) -> None:
        precision: Any = trainer.precision_plugin
        if self.hook is None and isinstance(precision, (HalfPrecision, DoublePrecision)):
            self.hook = task.model.register_forward_pre_hook(
                lambda model, inputs, options: precision.convert_input((inputs, options)), with_kwargs=True
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._widen_metrics(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._widen_metrics(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._widen_metrics(trainer, pl_module)

    def _widen_metrics(self, trainer: Trainer, task: LightningModule) -> None:
        if isinstance(trainer.precision_plugin, HalfPrecision):
            for module in task.modules():
                if isinstance(module, BaseAggregator):
                    module.set_dtype(torch.float32)


def check_devices(cfg: DictConfig) -> None:
    """Refuse devices that this machine does not have, and sharding of weights that cannot be sharded.

    Raises:
        UserError: one of these.
    """
    accelerator, found = cfg.trainer.accelerator, torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not found:
        raise UserError(f"trainer.accelerator={accelerator} needs a CUDA device and none was found; use trainer=cpu.")
    several = cfg.trainer.strategy != "auto"
    if several and accelerator != "cpu" and 0 < found < int(cfg.trainer.devices):
        raise UserError(f"trainer.devices={cfg.trainer.devices}: this machine has {found} CUDA devices.")
    if cfg.trainer.strategy == "fully_shard" and (not method_of(cfg).shards or cfg.backbone.load_in):
        raise UserError(
            f"trainer=fsdp splits weights over processes, which adapter={cfg.adapter.name} or backbone.load_in does not "
            "support: use trainer=ddp."
        )


def trainer_of(cfg: DictConfig, folder: Path, callbacks: list[Any]) -> Trainer:
    """Lightning's Trainer with the arguments in `cfg.trainer`.

    Raises:
        UserError: it refuses them.
    """
    arguments: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    arguments["enable_progress_bar"] = False  # run/progress.py shows the whole run with its ETA
    for key in BATCHES:  # 3.0 batches are 3: Lightning would take all of them for overfit_batches
        if isinstance(arguments[key], float) and arguments[key] > 1:
            arguments[key] = int(arguments[key])
    processes = process_count(cfg)
    if arguments["strategy"] == "fully_shard":
        arguments["strategy"] = FullyShard(processes)
    if processes > 1:
        arguments["devices"] = int(arguments["devices"])
    ours: Any = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # our samplers share the batches of one process
    }
    handlers = [EvaluatedEnd(), *callbacks, TruePrecision()]
    try:
        trainer = Trainer(**arguments, **ours, callbacks=handlers, default_root_dir=str(folder))
    except (
        MisconfigurationException,
        ModuleNotFoundError,
        ValueError,
        TypeError,
    ) as error:  # what this machine lacks, say
        raise UserError(f"the arguments in trainer do not work here: {reason(error)}") from error
    _count_epochs(trainer)
    return trainer


def _count_epochs(trainer: Trainer) -> None:
    """Resume a run with max_steps as any other: Lightning takes an epoch that it has finished for an unfinished one.

    It then goes through that epoch once more, without batches or with a single one, and counts it twice.
    """
    loop: Any = trainer.fit_loop
    loop._iteration_based_training = lambda: False
