"""What a task trains with: the optimizer, its schedule, and the training loss of an epoch, by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from foura import FouraConfig
from foura.families.task import Task
from tests.helpers.config import composed

STEPS = 10


class Given(Task):
    """The evaluations find what `found` says."""

    metrics = ("loss",)
    found = {"train_eval": 1.0, "val": 1.5}  # noqa: RUF012

    def loss(self, batch):
        return self.model(batch).mean()

    def evaluate(self, name, batch):
        return None

    def results(self, name):
        return {"loss": self.found[name]}


def task(*overrides: str) -> Given:
    """Of a gated FouRA on one linear layer, for ten steps."""
    cfg = composed("adapter=foura", "adapter.lr=0.01", *overrides)
    config = FouraConfig(r=4, target_modules=["0"], gate="adaptive")
    made = Given(get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config), cfg)
    made.steps = STEPS
    return made


def rates(*overrides: str) -> list[float]:
    """The learning rate of each step, and after the last one."""
    made = task(*overrides).configure_optimizers()
    found = []
    for _ in range(STEPS + 1):
        found.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert made["lr_scheduler"]["interval"] == "step"
    return found


def test_gates_have_a_rate_of_their_own_and_all_parameters_the_same_decay() -> None:
    made = task("adapter.gate_lr=0.5", "optimizer.weight_decay=0.125")
    groups = made.configure_optimizers()["optimizer"].param_groups
    initial = {name: group["initial_lr"] for group in groups for name, p in made.model.named_parameters()
               if any(p is one for one in group["params"])}  # fmt: skip
    assert set(initial.values()) == {0.01, 0.5}  # both kinds of parameters are there
    assert all(rate == (0.5 if ".foura_gate." in name else 0.01) for name, rate in initial.items())
    assert [group["weight_decay"] for group in groups] == [0.125] * len(groups)


def test_warm_up_is_a_share_of_the_steps_and_the_cosine_ends_at_zero() -> None:
    """Two steps of ten at 1/3 and 2/3 of the rate, then half a wave over the other eight."""
    cosine = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
    found = rates("optimizer.warmup=0.2", "optimizer.schedule=cosine")
    assert found == pytest.approx([0.01 * share for share in (1 / 3, 2 / 3, *cosine)])
    assert rates("optimizer.warmup=0.2", "optimizer.schedule=constant") == pytest.approx(
        [0.01 * share for share in (1 / 3, 2 / 3, *[1.0] * 9)]
    )
    assert rates("optimizer.warmup=0", "optimizer.schedule=constant") == pytest.approx([0.01] * 11)


def test_the_training_loss_of_an_epoch_is_the_mean_of_its_own_steps() -> None:
    """Steps of 4 and 2, then of 1: 3 and 1. The gap is how much worse validation is."""
    made = task()
    made._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), current_epoch=0, global_step=2)
    for losses in ((4.0, 2.0), (1.0,)):
        for loss in losses:
            made.train_loss.update(torch.tensor(loss))
        made.on_validation_epoch_end()
        made._trainer.current_epoch += 1
    assert [row["train/loss"] for row in made.history] == [3.0, 1.0]
    assert [(row["epoch"], row["gap/loss"]) for row in made.history] == [(0.0, 0.5), (1.0, 0.5)]


def test_frozen_batch_norms_keep_their_averages_and_trained_ones_learn() -> None:
    made = task()
    frozen, trained = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    frozen.requires_grad_(False)
    made.model.add_module("frozen", frozen)
    made.model.add_module("trained", trained)
    made.train()
    made.on_train_epoch_start()
    frozen(torch.full((3, 4), 5.0)), trained(torch.full((3, 4), 5.0))
    assert frozen.running_mean.tolist() == [0.0] * 4 and trained.running_mean.tolist() == [0.5] * 4  # momentum 0.1


def test_what_a_method_adds_to_the_loss_is_trained_on_and_not_reported() -> None:
    made = task()
    made.method = SimpleNamespace(loss=lambda model: torch.tensor(2.0))
    batch = torch.randn(3, 8)
    alone = made.loss(batch).item()
    assert made.training_step(batch, 0).item() == pytest.approx(alone + 2.0)
    assert float(made.train_loss.compute()) == pytest.approx(alone)
