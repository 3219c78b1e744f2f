"""Training that is stopped, within an epoch or after one, and resumed from its checkpoint: as if it had never been stopped."""

import signal
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from pytorch_lightning import Callback
from torch import nn

from foura import FouraConfig
from foura.data.run_data import RunData
from foura.errors import Interrupted
from foura.families.task import Task
from foura.run.checkpoint import Checkpoint
from foura.run.loop import Loaders, trainer_of
from tests.helpers.config import composed

ITEMS = list(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))  # four batches of two in an epoch
DATA = RunData(
    train=ITEMS,
    train_eval=ITEMS[:3],
    validation=ITEMS[5:],
    test=ITEMS[:1],
    sizes={},
    fingerprint="",
    collate=torch.stack,
)


class Small(Task):
    """Of a gated FouRA on two linear layers, with a frozen batch norm between them."""

    metrics = ("loss",)

    def __init__(self, cfg) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        super().__init__(get_peft_model(model, FouraConfig(r=2, target_modules=["0", "2"], gate="adaptive")), cfg)
        self.trained_on: list[torch.Tensor] = []
        self.found: dict[str, list[torch.Tensor]] = {}

    def loss(self, batch):
        self.trained_on.append(batch)
        return (self.model(batch) - 1.0).square().mean()

    def evaluate(self, name, batch):
        self.found.setdefault(name, []).append((self.model(batch) - 1.0).square().mean())

    def results(self, name):
        return {"loss": float(torch.stack(self.found.pop(name)).mean())}


class StopAfter(Callback):
    """The user presses Ctrl-C in this step."""

    def __init__(self, step: int | None, keeper: Checkpoint) -> None:
        self.step, self.keeper = step, keeper

    def on_train_batch_end(self, trainer, task, out, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            self.keeper.signals.asked = signal.SIGINT


def fit(folder: Path, *overrides: str, stop: int | None = None) -> Small:
    """Train, from the folder's checkpoint if there is one, and up to a step."""
    cfg = composed("adapter=foura", "adapter.lr=0.01", "dataset.batch_size=2", *overrides)
    task, loaders, path = Small(cfg), Loaders(DATA, cfg), folder / "checkpoint.pt"
    task.steps = loaders.steps()
    keeper = Checkpoint(path, [loaders.train.generator], loaders.train.batch_sampler)
    trainer = trainer_of(cfg, folder, [StopAfter(stop, keeper), keeper])
    resume = {"ckpt_path": str(path), "weights_only": True} if path.exists() else {}
    trainer.fit(task, loaders.train, loaders.evaluation(), **resume)
    return task


@pytest.mark.parametrize("stop", [2, 4, 8, 9])
@pytest.mark.parametrize(
    ("choice", "steps", "evaluated"),
    [
        ("trainer.max_epochs=3", 12, [0, 1, 2]),
        ("trainer.max_epochs=3 trainer.check_val_every_n_epoch=2", 12, [1, 2]),
        ("trainer.max_epochs=3 trainer.check_val_every_n_epoch=9", 12, [2]),
        ("trainer.max_epochs=3 trainer.max_steps=1000", 12, [0, 1, 2]),
        ("trainer.max_epochs=3 trainer.max_steps=10", 10, [0, 1, 2]),
        ("trainer.max_epochs=null trainer.max_steps=16 trainer.check_val_every_n_epoch=2", 16, [1, 3]),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(choice, steps, evaluated, stop, tmp_path) -> None:
    whole = fit(tmp_path, *choice.split())
    assert len(whole.trained_on) == steps and [row["epoch"] for row in whole.history] == evaluated
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(Interrupted):
        fit(tmp_path, *choice.split(), stop=stop)
    after = fit(tmp_path, *choice.split())
    assert torch.equal(torch.stack(after.trained_on), torch.stack(whole.trained_on[stop:]))
    assert after.history == [pytest.approx(row) for row in whole.history]
    expected = whole.model.state_dict()
    for name, value in after.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
