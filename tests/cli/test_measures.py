"""What a run measures beside loss and accuracy, and ranks of equal cost."""

import pytest

from tests.helpers.runs import client, status


@pytest.mark.parametrize("adapter", ["lora", "foura_dct", "foura_dft", "foura", "dora", "adalora", "sora"])
def test_equal_parameters_are_as_near_below_loras_as_a_rank_can_be(adapter) -> None:
    from foura.families import build
    from foura.methods.attach import attach
    from tests.helpers.config import composed

    def count(*overrides: str) -> tuple[int, int]:
        cfg = composed(*overrides)
        model = attach(build(cfg).backbone, cfg, steps=100)
        ranks = {layer.r["default"] for layer in model.modules() if isinstance(getattr(layer, "r", None), dict)}
        own = [p.numel() for name, p in model.named_parameters() if p.requires_grad and "head" not in name]
        return sum(own), ranks.pop()

    budget, _ = count("adapter=lora", "rank=24")
    spent, rank = count(f"adapter={adapter}", "rank=24", "iso_parameters=true")
    assert 0.9 * budget < spent <= budget
    own = rank if adapter != "adalora" else round(rank / 1.5)  # it starts wider
    if own < 24:
        assert count(f"adapter={adapter}", f"rank={own + 1}")[0] > budget


def test_what_only_memory_can_fit_is_measured_and_so_is_what_was_forgotten(train) -> None:
    """Without training nothing is memorised beyond chance and nothing forgotten; full fine-tuning does both."""
    quick = ("adapter=full", "dataset.limit=60", "dataset.label_noise=0.3", "evaluation.drift=true", "select=acc")
    little = status(train(*quick, "dataset.epochs=1", "optimizer.lr=1e-9", into="little"))["metrics"]
    assert little["memorised/train"] < 0.4
    assert little["drift/loss"] == pytest.approx(0.0, abs=1e-3)
    much = status(train(*quick, "dataset.epochs=40", "optimizer.lr=1e-3", "select=loss", into="much"))["metrics"]
    assert much["drift/loss"] > 0.05
    told = train(*quick, "backbone.pretrained=false", "dataset.epochs=1", into="told")
    assert "known of the embedded backbones alone" in told.code


def test_open_ranks_are_there_by_epoch(train) -> None:
    ended = train("adapter=foura", "rank=4", "dataset.limit=40", "dataset.epochs=3")
    history = client(ended.outputs).get_metric_history(status(ended)["run_id"], "adapter/open_ranks")
    assert [point.step for point in history] == [0, 1, 2]
    assert all(3.0 < point.value <= 4.0 for point in history)


def test_pictures_are_measured_by_epoch_against_validation(train) -> None:
    few = ("dataset.limit=4", "dataset.repeats=1", "evaluation.sampling_steps=1", "evaluation.max_prompts=2")
    few += ("backbone=unet", "adapter=lora", "rank=4", "adapter.dropout=0.5", "dataset.epochs=4")
    ended = train(*few, "evaluation.judge_every=2", "evaluation.features=glyphs")
    store, run_id = client(ended.outputs), status(ended)["run_id"]
    for measure in ("kernel", "diversity", "copy_distance"):
        assert [point.step for point in store.get_metric_history(run_id, f"val/{measure}")] == [1, 3]
    unmeasured = status(train(*few, into="unmeasured"))["metrics"]
    assert status(ended)["metrics"]["final/loss"] == unmeasured["final/loss"]
