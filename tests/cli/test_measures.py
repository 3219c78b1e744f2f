"""The measures of a run beside loss and accuracy."""

import pytest

from tests.helpers.runs import client, status


def test_what_only_memory_can_fit_is_measured_and_so_is_what_was_forgotten(train) -> None:
    """Without training nothing is memorised beyond chance and nothing forgotten; full fine-tuning does both."""
    quick = ("adapter=full", "dataset.limit=60", "dataset.label_noise=0.3", "evaluation.drift=true", "select=acc")
    little = status(train(*quick, "dataset.epochs=1", "optimizer.lr=1e-9", into="little"))["metrics"]
    assert little["memorised/train"] < 0.4
    assert little["drift/loss"] == pytest.approx(0.0, abs=1e-3)
    much = status(train(*quick, "dataset.epochs=40", "optimizer.lr=1e-3", "select=loss", into="much"))["metrics"]
    assert much["drift/loss"] > 0.05
    told = train(*quick, "backbone.pretrained=false", "dataset.epochs=1", into="told")
    assert "known for the bundled backbones alone" in told.code


@pytest.mark.slow
def test_generated_images_are_measured_by_epoch_against_validation(train) -> None:
    few = ("dataset.limit=4", "dataset.repeats=1", "evaluation.sampling_steps=1", "evaluation.max_prompts=2")
    few += ("backbone=unet", "adapter=lora", "rank=4", "adapter.dropout=0.5", "dataset.epochs=4")
    ended = train(*few, "evaluation.judge_every=2", "evaluation.features=glyphs")
    store, run_id = client(ended.outputs), status(ended)["run_id"]
    for measure in ("kernel", "diversity", "copy_distance"):
        assert [point.step for point in store.get_metric_history(run_id, f"val/{measure}")] == [1, 3]
    unmeasured = status(train(*few, into="unmeasured"))["metrics"]
    assert status(ended)["metrics"]["final/loss"] == unmeasured["final/loss"]
