"""Open ranks by epoch: what is counted, on which data, and that they survive a resumed run and checkpoints of 0.1.0."""

import operator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import get_peft_model

from foura import FouraConfig, distributed
from foura.run.recorder import OpenRanks, Recorder


def recorder() -> Recorder:
    return Recorder("loss", SimpleNamespace(logged_steps=lambda key: set()), None, Path())


def test_the_state_of_a_recorder_has_the_epochs_so_far() -> None:
    one, other = recorder(), recorder()
    one.ranks_by_epoch = [{"epoch": 0, "a": 4.0}, {"epoch": 1, "a": 3.5}]
    other.load_state_dict(one.state_dict())
    assert other.ranks_by_epoch == one.ranks_by_epoch
    old = {key: value for key, value in one.state_dict().items() if key != "ranks_by_epoch"}
    other.load_state_dict(old)
    assert other.ranks_by_epoch == []


def gated() -> tuple[Any, Any]:
    """(a model with an adaptive gate for each token, the gate)."""
    config = FouraConfig(r=4, target_modules=["0"], gate="adaptive", gate_scope="token")
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
    return model, model.base_model.model[0].foura_gate["default"]


def test_means_of_each_layer_over_inputs() -> None:
    opened = OpenRanks()
    assert opened.by_layer(0) == [] and opened.mean() == {}
    opened.counts = {"a": (12.0, 4), "b": (2.0, 2)}
    assert opened.by_layer(7) == [{"epoch": 7, "a": 3.0, "b": 1.0}]
    assert opened.mean() == {"adapter/open_ranks": 2.0}


def test_a_small_last_batch_counts_by_its_inputs() -> None:
    """Nine tokens that open four ranks and one that opens none; a batch without tokens has no mean of its own."""
    opened, (model, gate) = OpenRanks(), gated()
    opened.watch(model)
    for tokens, value in ((9, 1.0), (1, 0.0), (0, 0.0)):
        gate.forward = lambda u, tokens=tokens, value=value: torch.full((1, tokens, 4), value)
        model(torch.zeros(1, tokens, 8))
    opened.release()
    assert opened.by_layer(0) == [{"epoch": 0, "0": 3.6}] and opened.mean() == {"adapter/open_ranks": 3.6}


def test_processes_count_by_their_inputs(monkeypatch) -> None:
    """This process has two inputs that open four ranks; another has six of layer a that open none, and none of layer b."""
    opened, others = OpenRanks(), (0.0, 6.0, 0.0, 0.0)
    opened.counts = {"a": (8.0, 2.0), "b": (4.0, 2.0)}
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda *own: list(map(operator.add, own, others)))
    assert opened.by_layer(0) == [{"epoch": 0, "a": 1.0, "b": 2.0}] and opened.mean() == {"adapter/open_ranks": 1.5}


def test_open_ranks_are_those_of_real_tokens_of_the_training_data() -> None:
    """Gates of three tokens, the last of which is padding: 2 ranks and 4 are above a half. Validation data opens none."""
    model, gate = gated()
    gate.padding_mask = torch.tensor([[True, True, False]])
    one, row, x = recorder(), {"epoch": 0.0, "val/loss": 1.0}, torch.zeros(1, 3, 8)
    one.tracked.log_metrics, one.progress = (lambda *_, **__: None), SimpleNamespace(epoch=lambda *_: None)
    task = SimpleNamespace(model=model, history=[row], epoch_measures=dict, epoch_images=lambda folder: [])
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    one.on_validation_start(trainer, task)
    for loader, gates in enumerate(([[0.9, 0.6, 0.5, 0.1], [0.9] * 4, [0.0] * 4], [[0.0] * 4] * 3)):
        one.on_validation_batch_start(trainer, task, None, 0, loader)
        gate.forward = lambda u, gates=gates: torch.tensor([gates])
        model(x)
    one.on_validation_end(trainer, task)
    assert row["adapter/open_ranks"] == 3.0 and one.ranks_by_epoch == [{"epoch": 0, "0": 3.0}]
    model(torch.zeros(1, 3, 8))  # nothing is counted outside of an evaluation
    assert one.open_ranks.counts == {"0": (6.0, 2.0)}
