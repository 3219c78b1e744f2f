"""Open ranks by epoch survive a resumed run, and checkpoints of 0.1.0, which have none of them."""

from pathlib import Path
from types import SimpleNamespace

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


def test_means_of_each_layer_over_batches() -> None:
    opened = OpenRanks()
    assert opened.by_layer(0) == [] and opened.mean() == {}
    opened.counts = {"a": [4.0, 2.0], "b": [1.0, 1.0]}
    assert opened.by_layer(7) == [{"epoch": 7, "a": 3.0, "b": 1.0}]
    assert opened.mean() == {"adapter/open_ranks": 2.0}
