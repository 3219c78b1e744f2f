"""Training that begins at another adapter: the same function at the start, or a sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.utils.data import Subset

from foura.errors import UserError
from foura.families import build
from foura.methods.attach import attach
from foura.methods.state import adapter_parameters
from foura.run.artifacts import save_adapter
from foura.run.loop import Loaders
from foura.run.start_from import start_from
from tests.helpers.config import composed
from tests.helpers.runs import client, status

QUICK = ("rank=4", "dataset.limit=40", "trainer.max_epochs=1", "trainer.enable_progress_bar=false")
SLOW = ("foura_dft", "foura_random", "lora", "dora", "rslora", "vera", "fourierft", "oft", "head")
METHODS = ["foura", "sora", "full", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def started(*overrides: str, at: Path | None = None) -> tuple[Any, Any]:
    """(task, logits of eight test items) of a model as its training begins, `at` an adapter."""
    cfg = composed(*overrides, *([] if at is None else [f'adapter.start_from="{at}"']))
    torch.manual_seed(3)
    parts = build(cfg)
    model = attach(parts.backbone, cfg, steps=10)
    start_from(model, cfg)
    task = parts.task(model.eval())
    (inputs,) = Loaders(parts.data, cfg).inputs(task, Subset(parts.data.test, range(8)))
    return task, lambda: model(inputs).detach()


@pytest.mark.parametrize("adapter", METHODS)
def test_training_begins_where_an_adapter_is(adapter, tmp_path) -> None:
    overrides = (f"adapter={adapter}", "rank=4")
    task, logits = started(*overrides)
    fresh = logits()
    with torch.no_grad():  # as if trained
        for number, parameter in enumerate(p for p in task.model.parameters() if p.requires_grad):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    save_adapter(task, adapter_parameters(task.model), tmp_path)
    assert not torch.allclose(logits(), fresh, atol=1e-2)
    for place in (tmp_path, tmp_path / "adapter"):  # of a run's folder, or of an adapter itself
        again, begun = started(*overrides, at=place)
        torch.testing.assert_close(begun(), logits(), atol=1e-5, rtol=1e-5)
        assert sum(p.numel() for p in again.model.parameters() if p.requires_grad) == sum(
            p.numel() for p in task.model.parameters() if p.requires_grad
        )


@pytest.fixture(scope="module")
def lora(train_into, tmp_path_factory):
    return train_into(tmp_path_factory.mktemp("lora") / "outputs", "adapter=lora", *QUICK)


def test_a_run_trains_on_and_says_from_what(lora, train) -> None:
    ended = train("adapter=lora", *QUICK, f'adapter.start_from="{lora.folder()}"')
    assert ended.code == 0, ended.out
    first, second = (status(one)["metrics"] for one in (lora, ended))
    assert second["best/loss"] < first["best/loss"] - 0.1  # a second epoch after the first
    run = client(ended.outputs).get_run(status(ended)["run_id"])
    assert run.data.params["adapter.start_from"] == str(lora.folder())
    assert run.data.tags["start_from"].startswith(f"{lora.folder() / 'adapter'} (sha256 ")
    assert "start_from" not in client(lora.outputs).get_run(status(lora)["run_id"]).data.tags


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("adapter=foura", "rank=4"), "is of peft_type 'LORA'; the run is of FOURA"),
        (("adapter=lora", "rank=8"), "the adapter has r=4, and this run r=8"),
        (("adapter=lora", "rank=4", "alpha=2.0"), "the adapter has lora_alpha=4.0, and this run lora_alpha=8.0"),
        (("adapter=dora", "rank=4"), "the adapter has use_dora=False, and this run use_dora=True"),
        (("adapter=head", "rank=4"), "model.safetensors"),
        (("adapter=lora", "rank=4", "backbone.target_modules=[qkv]"), "is not a weight of the model"),
    ],
)
def test_another_adapter_is_refused(overrides, said, lora) -> None:
    with pytest.raises(UserError) as refused:
        started(*overrides, at=lora.folder())
    assert said in str(refused.value)


def test_shapes_are_checked_and_nothing_is_taken_for_an_adapter(lora, tmp_path) -> None:
    with pytest.raises(UserError, match=r"adapter\.start_from=.*: there is nothing at that place"):
        started("adapter=lora", "rank=4", at=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        started("adapter=lora", "rank=4", at=tmp_path / "empty")
    shutil.copytree(lora.folder() / "adapter", tmp_path / "other")
    path = tmp_path / "other" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 8}))
    with pytest.raises(UserError, match=r"does not fit this run's model: .* is .* and should be"):
        started("adapter=lora", "rank=8", "alpha=0.5", at=tmp_path / "other")


def test_an_adapter_that_peft_saved_is_a_start(lora, tmp_path) -> None:
    parts = build(composed("adapter=lora", "rank=4"))
    model = PeftModel.from_pretrained(parts.backbone.model, lora.folder() / "adapter")
    model.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=False)
    places = (tmp_path / "peft", lora.folder())
    ours, theirs = (started("adapter=lora", "rank=4", at=place)[1]() for place in places)
    assert torch.equal(ours, theirs)
