"""The number of optimizer steps: by hand, and against Lightning's own count and what it does."""

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader

from foura.errors import UserError
from foura.methods import method_of
from foura.run.loop import trainer_of
from foura.run.steps import check_limits, optimizer_steps
from tests.helpers.config import composed
from tests.helpers.runs import status

BATCHES = 10
CASES = {
    "trainer.max_epochs=3": 30,
    "trainer.max_epochs=3 trainer.accumulate_grad_batches=4": 9,  # 3 in each epoch: its last one has 2 batches
    "trainer.max_epochs=3 trainer.max_steps=7": 7,
    "trainer.max_epochs=3 trainer.max_steps=70": 30,
    "trainer.max_epochs=null trainer.max_steps=12": 12,
    "trainer.max_epochs=3 trainer.limit_train_batches=4": 12,
    "trainer.max_epochs=3 trainer.limit_train_batches=40": 30,
    "trainer.max_epochs=3 trainer.limit_train_batches=1": 3,
    "trainer.max_epochs=3 trainer.limit_train_batches=1.0": 30,
    "trainer.max_epochs=3 trainer.limit_train_batches=4.0": 12,
    "trainer.max_epochs=3 trainer.limit_train_batches=0.35": 9,
    "trainer.max_epochs=3 trainer.limit_train_batches=0.35 trainer.accumulate_grad_batches=2": 6,
    "trainer.max_epochs=3 trainer.overfit_batches=2": 6,
    "trainer.max_epochs=3 trainer.overfit_batches=2.0": 6,
    "trainer.max_epochs=3 trainer.overfit_batches=0.5 trainer.limit_train_batches=1": 15,
    "trainer.max_epochs=3 trainer.fast_dev_run=true": 1,
    "trainer.max_epochs=3 trainer.fast_dev_run=4": 4,
    "trainer.max_epochs=3 trainer.fast_dev_run=40": 10,
    "trainer.max_epochs=3 trainer.fast_dev_run=4 trainer.accumulate_grad_batches=2": 2,
    "trainer.max_epochs=2 trainer.max_time='01:00:00:00'": 20,
    "trainer.max_epochs=2 trainer.max_time={hours:1}": 20,
}


class Counted(LightningModule):
    """Keeps what its trainer expects when it asks for an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        self.expected = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("overrides", CASES)
def test_the_steps_are_those_that_lightning_expects_and_makes(overrides, tmp_path) -> None:
    cfg = composed(*overrides.split())
    assert optimizer_steps(cfg.trainer, BATCHES) == CASES[overrides]
    trainer, module = trainer_of(cfg, tmp_path, []), Counted()
    trainer.fit(module, DataLoader(torch.ones(BATCHES, 1)))
    assert module.expected == trainer.global_step == CASES[overrides]


def test_a_run_that_time_alone_ends_has_no_number_of_steps() -> None:
    with pytest.raises(UserError, match=r"trainer\.max_time alone does not say"):
        optimizer_steps(composed("trainer.max_epochs=null", "trainer.max_time='00:00:01:00'").trainer, BATCHES)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 of 10 batches is none"),
        ("trainer.limit_train_batches=0.05", "trainer.limit_train_batches=0.05 of 10 batches is none"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0 of 2 batches is none"),
        ("trainer.limit_test_batches=0.3", "trainer.limit_test_batches=0.3 of 3 batches is none"),
        ("trainer.overfit_batches=0.01", "trainer.overfit_batches=0.01 of 10 batches is none"),
        ("trainer.limit_val_batches=0.5", ""),
        ("trainer.fast_dev_run=true", ""),
        ("trainer.overfit_batches=1", ""),
    ],
)
def test_limits_that_leave_nothing_are_said_before_training(override, said) -> None:
    trainer, batches = composed(override).trainer, {"train": BATCHES, "val": 2, "test": 3}
    if not said:
        check_limits(trainer, batches)
        return
    with pytest.raises(UserError) as refused:
        check_limits(trainer, batches)
    assert said in str(refused.value)


def test_adalora_plans_over_the_steps_that_are_made() -> None:
    cfg = composed("adapter=adalora", "rank=4")
    config = method_of(cfg).config(cfg, {}, optimizer_steps(OmegaConf.merge(cfg.trainer, {"max_steps": 10}), 100), {})
    assert (config.total_step, config.tinit, config.tfinal) == (10, 1, 3)


@pytest.mark.parametrize(
    "limits",
    [
        ("trainer.max_steps=12",),
        pytest.param(("trainer.limit_train_batches=2", "dataset.epochs=6"), marks=pytest.mark.slow),
    ],
)
def test_adalora_reaches_its_target_however_the_run_is_limited(limits, train) -> None:
    """4 batches an epoch for 12 steps of a possible 160, or 2 of them for 6 epochs: 1.5 times the rank is pruned by step 9."""
    ended = train("adapter=adalora", "rank=4", "optimizer.lr=0.01", *limits)
    assert ended.code == 0, ended.out
    assert status(ended)["metrics"]["adapter/effective_rank"] == 4.0
