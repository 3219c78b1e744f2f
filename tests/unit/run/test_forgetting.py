"""Forgetting: in which runs it is measured, and that measuring it changes nothing else."""

from types import SimpleNamespace

import pytest
import torch

from foura.config import run_key
from foura.errors import UserError
from foura.families import build
from foura.run import before
from foura.run.before import check_forgetting, measures_forgetting, pretraining_loss
from tests.helpers.config import composed
from tests.helpers.runs import status

OWN = ("backbone.name=timm/some", "backbone.img_size=16")


@pytest.mark.parametrize("backbone", ["vit", "llama_small", "unet", "bert"])
def test_bundled_backbones_have_it_measured(backbone) -> None:
    assert measures_forgetting(composed(f"backbone={backbone}"))
    assert not measures_forgetting(composed(f"backbone={backbone}", "evaluation.drift=false"))


@pytest.mark.parametrize(
    "overrides",
    [
        OWN,
        ("backbone.pretrained=false",),
        ("trainer=fsdp",),
        ("trainer.precision=bf16-true",),
        ("evaluation.test=false",),
        ("backbone=llama_small", "backbone.torch_dtype=bfloat16"),
    ],
)
def test_it_is_left_out_where_it_means_nothing_or_costs_more(overrides) -> None:
    assert not measures_forgetting(composed(*overrides))


def test_asked_for_it_is_measured() -> None:
    assert measures_forgetting(composed("trainer.precision=bf16-true", "evaluation.drift=true"))


def test_the_default_has_the_key_of_runs_that_did_not_measure_it() -> None:
    """Their results stay: only evaluation.drift=true had a key of its own."""
    keys = [
        run_key(composed(*overrides)) for overrides in ((), ("evaluation.drift=false",), ("evaluation.drift=true",))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_of_another_language_model_it_is_measured_on_the_text_that_is_named(tmp_path) -> None:
    text = tmp_path / "like.txt"
    text.write_text("It was a bright cold day in April, and the clocks were striking thirteen. " * 60)
    named = ("backbone=llama_small", "backbone.pretrained=false", f"evaluation.pretraining_text={text}")
    cfg = composed(*named, "dataset.limit=8", "dataset.eval_limit=4")
    check_forgetting(cfg)
    assert measures_forgetting(cfg)
    parts = build(cfg)
    measured = pretraining_loss(parts, parts.backbone.model, cfg)
    ids = torch.tensor(parts.backbone.tokenizer(text.read_text())["input_ids"])
    blocks = ids[: len(ids) // 128 * 128].view(-1, 128)  # the text has fewer than 64
    with torch.no_grad():
        assert measured == pytest.approx(float(parts.backbone.model(blocks, labels=blocks).loss), rel=1e-5)
    text.write_text("It was a bright cold day.")
    with pytest.raises(UserError, match=r"pretraining_text=.*like.txt has [0-9]+ tokens.*blocks of 128"):
        pretraining_loss(parts, parts.backbone.model, cfg)


def test_a_text_that_is_named_is_used_or_refused(tmp_path) -> None:
    named = ("backbone=llama_small", f"evaluation.pretraining_text={tmp_path / 'like.txt'}")
    (tmp_path / "like.txt").write_text("text")
    assert measures_forgetting(composed(*named, "trainer.precision=bf16-true"))
    assert measures_forgetting(composed(*named, "backbone.torch_dtype=bfloat16"))
    assert not measures_forgetting(composed(*named, "evaluation.test=false"))
    with pytest.raises(UserError, match=r"no effect with evaluation\.drift=false"):
        check_forgetting(composed(*named, "evaluation.drift=false"))


def test_a_text_that_is_not_there_is_said_before_anything_is_built(tmp_path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.pretraining_text=nowhere\.txt: there is nothing"):
        check_forgetting(composed("backbone=llama_small", "evaluation.pretraining_text=nowhere.txt"))
    with pytest.raises(UserError, match="is not a file that can be read"):
        check_forgetting(composed("backbone=llama_small", f"evaluation.pretraining_text={tmp_path}"))


@pytest.mark.parametrize("backbone", ["vit", "bert"])
def test_the_random_generator_stays_where_it_was(backbone) -> None:
    cfg = composed(f"backbone={backbone}")
    parts = build(cfg)
    before = torch.get_rng_state()
    loss = pretraining_loss(parts, parts.backbone.model, cfg)
    assert torch.equal(torch.get_rng_state(), before) and loss > 0
    assert pretraining_loss(parts, parts.backbone.model, cfg) == loss


def test_measuring_it_changes_no_other_number(train) -> None:
    quick = ("adapter=foura", "rank=2", "dataset.limit=40", "dataset.epochs=1", "adapter.dropout=0.1")
    measured = status(train(*quick))["metrics"]
    left = status(train(*quick, "evaluation.drift=false", into="other"))["metrics"]
    assert "drift/loss" in measured and "drift/loss" not in left
    timed = ("cost/step_time_ms", "cost/peak_memory_mb")
    numbers = {key: value for key, value in left.items() if key not in timed}
    assert numbers == {key: measured[key] for key in numbers} and len(numbers) > 10


def test_the_backbone_is_measured_in_evaluation_and_left_as_it_was(monkeypatch) -> None:
    seen = []

    def measure(parts, model, cfg) -> float:
        seen.append((model.training, torch.is_grad_enabled()))
        return float(torch.rand(()))

    monkeypatch.setattr(before, "family_of", lambda cfg: SimpleNamespace(pretraining_loss=measure))
    model = torch.nn.Dropout()
    state = torch.get_rng_state()
    for training in (True, False):
        before.pretraining_loss(None, model.train(training), None)
        assert model.training is training
    assert seen == [(False, False)] * 2 and torch.equal(torch.get_rng_state(), state)
