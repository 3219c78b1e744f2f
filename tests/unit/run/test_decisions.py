"""Decisions that a run's result rests on, with scripted evaluations whose consequences are worked out by hand."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from foura.families import build
from foura.families.images.task import Classification
from foura.methods.state import adapter_parameters
from tests.helpers.runs import scientific, status

# By epoch. The validation loss is best in the second epoch, the accuracy in the third (the fourth only ties), and on the
# evaluated part of the training data everything is best in the last.
SCRIPT = {
    "val": {"loss": [1.0, 0.6, 0.7, 0.9], "acc": [0.5, 0.7, 0.8, 0.8]},
    "train_eval": {"loss": [0.9, 0.5, 0.3, 0.1], "acc": [0.6, 0.75, 0.9, 0.99]},
}
TEST = {"loss": 2.0, "acc": 0.25}
RUN = ("adapter=lora", "rank=2", "dataset.limit=40", "trainer.max_epochs=4", "dataset.train_eval_limit=30")
RUN += ("trainer.enable_progress_bar=false",)


class Evaluations:
    """The evaluations under each name: the labels, and the adapter's parameters at the time."""

    def __init__(self) -> None:
        self.labels: dict[str, list[list[int]]] = {"train_eval": [], "val": [], "test": []}
        self.states: dict[str, list[dict[str, torch.Tensor]]] = {"train_eval": [], "val": [], "test": []}
        self.open: dict[str, list[int]] = {}


@pytest.fixture
def evaluations(monkeypatch) -> Evaluations:
    """Evaluations are recorded, and give the scripted numbers."""
    kept = Evaluations()
    evaluate, results = Classification.evaluate, Classification.results

    def recorded(task, name, batch) -> None:
        kept.open.setdefault(name, []).extend(batch[1].tolist())
        evaluate(task, name, batch)

    def scripted(task, name) -> dict[str, float]:
        results(task, name)
        kept.labels[name].append(kept.open.pop(name))
        kept.states[name].append({key: value.clone() for key, value in adapter_parameters(task.model).items()})
        if name == "test":
            return dict(TEST)
        return {key: values[task.current_epoch] for key, values in SCRIPT[name].items()}

    monkeypatch.setattr(Classification, "evaluate", recorded)
    monkeypatch.setattr(Classification, "results", scripted)
    return kept


def test_a_tuning_run_does_not_touch_the_test_data(evaluations, train) -> None:
    ended = train(*RUN, "evaluation.test=false")
    found = status(ended)["metrics"]
    assert evaluations.labels["test"] == [] and len(evaluations.labels["val"]) == 4
    assert not any(key.startswith("test/") for key in found) and found["best/acc"] == 0.7
    assert " test " not in ended.out.partition("of the selected epoch")[2]
    card = (ended.folder() / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "the test data was not used" in card and "| acc | 0.7 | – |" in card and "train_acc" not in card
    assert not (ended.folder() / "test_items.csv").exists()


@pytest.mark.parametrize(("select", "epoch"), [("loss", 1), ("acc", 2)])
def test_the_selected_epoch_is_the_best_on_validation_data_and_the_one_reported(
    select, epoch, evaluations, train
) -> None:
    ended = train(*RUN, f"select={select}")
    found = status(ended)["metrics"]
    val, seen = SCRIPT["val"], SCRIPT["train_eval"]
    expected = {
        "best/loss": val["loss"][epoch],
        "best/acc": val["acc"][epoch],
        "best/train_acc": seen["acc"][epoch],
        "final/loss": 0.9,
        "final/acc": 0.8,
        "final/gap_loss": 0.8,  # 0.9 - 0.1: worse on validation data
        "final/gap_acc": 0.19,  # 0.99 - 0.8
        "overfit/onset_epoch": 1.0,
        "test/loss": 2.0,
        "test/acc": 0.25,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert f"{val['acc'][epoch]:.3f}" in ended.out
    # the adapter that is tested and saved is the one of that epoch, and no other epoch's
    states = evaluations.states
    (tested,) = states["test"]
    same = [all(torch.equal(tested[key], state[key]) for key in tested) for state in states["val"]]
    assert same == [number == epoch for number in range(4)]
    saved = load_file(ended.folder() / "adapter" / "adapter_model.safetensors")
    assert sorted(value.sum().item() for value in saved.values()) == pytest.approx(
        sorted(value.sum().item() for value in tested.values())
    )


def test_test_data_is_evaluated_once_and_nothing_else_sees_it(evaluations, train) -> None:
    """Digits: 1,797 images, 40 % of which are test data and 30 % validation data."""
    train(*RUN)
    labels = evaluations.labels
    assert [len(part) for part in labels["test"]] == [719]
    assert [len(part) for part in labels["val"]] == [539] * 4
    assert [len(part) for part in labels["train_eval"]] == [30] * 4  # a fixed part of what is trained on
    assert labels["val"][0] == labels["val"][3] != labels["test"][0]
    assert labels["train_eval"][0] == labels["train_eval"][3] == labels["train_eval"][1]


def test_an_epoch_that_only_ties_is_not_selected(evaluations, train, monkeypatch) -> None:
    monkeypatch.setitem(SCRIPT["val"], "acc", [0.8, 0.8, 0.8, 0.8])
    ended = train(*RUN, "select=acc")
    assert status(ended)["metrics"]["best/loss"] == 1.0


def test_the_values_of_each_test_item_are_kept(train) -> None:
    ended = train(*RUN, "dataset.eval_batch_size=100")
    metrics, items = status(ended)["metrics"], pd.read_csv(ended.folder() / "test_items.csv")
    assert len(items) == 719 and set(items) == {"acc", "loss"}
    assert items["acc"].mean() == pytest.approx(metrics["test/acc"], abs=1e-6)
    assert items["loss"].mean() == pytest.approx(metrics["test/loss"], rel=1e-4)


def test_the_start_does_not_depend_on_what_the_data_drew(train, monkeypatch) -> None:
    short = (*RUN, "trainer.max_epochs=1")
    first = scientific(status(train(*short))["metrics"])

    def drawing(cfg):
        parts = build(cfg)
        torch.rand(7)
        return parts

    monkeypatch.setattr("foura.run.run.build", drawing)
    assert scientific(status(train(*short, into="again"))["metrics"]) == first
