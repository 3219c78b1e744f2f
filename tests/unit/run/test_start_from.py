"""Training that begins at another adapter: the same function at the start, or a sentence."""

import json
import shutil

import pytest
import torch
from peft import PeftModel

from foura.errors import UserError
from foura.families import build
from foura.methods.attach import attach
from foura.run.start_from import start_from
from tests.helpers.config import composed
from tests.helpers.runs import client, status

QUICK = ("rank=4", "dataset.limit=40", "trainer.max_epochs=1", "trainer.enable_progress_bar=false")
METHODS = ("foura", "foura_dft", "lora", "dora", "sora", "vera", "full", "head", "pissa")


def logits(cfg) -> torch.Tensor:
    torch.manual_seed(3)
    parts = build(cfg)
    model = attach(parts.backbone, cfg, steps=10)
    start_from(model, cfg)
    batch = parts.data.collate([parts.data.test[n] for n in range(8)]) if parts.data.collate else None
    inputs = parts.task(model).inputs(batch)
    return model.eval()(inputs).detach()


@pytest.mark.parametrize("adapter", METHODS)
def test_a_run_begins_where_another_ended(adapter, train) -> None:
    ended = train(f"adapter={adapter}", *QUICK, "optimizer.lr=0.02")
    assert ended.code == 0, ended.out
    overrides = (f"adapter={adapter}", *QUICK)
    start = logits(composed(*overrides, f"adapter.start_from={ended.folder()}"))
    assert torch.equal(start, logits(composed(*overrides, f"adapter.start_from={ended.folder() / 'adapter'}")))
    assert not torch.allclose(start, logits(composed(*overrides)), atol=1e-3)
    # what the run tested is what the next one begins at
    cfg = composed(*overrides, f"adapter.start_from={ended.folder()}")
    parts = build(cfg)
    model = attach(parts.backbone, cfg, steps=10)
    start_from(model, cfg)
    task = parts.task(model)
    from foura.run.loop import Loaders, trainer_of

    with torch.no_grad():
        trainer_of(cfg, ended.outputs, []).test(task, Loaders(parts.data, cfg).test(), verbose=False)
    assert task.tested["test/loss"] == pytest.approx(status(ended)["metrics"]["test/loss"], rel=1e-5)


@pytest.fixture(scope="module")
def lora(train_into, tmp_path_factory):
    return train_into(tmp_path_factory.mktemp("lora") / "outputs", "adapter=lora", *QUICK)


def test_the_adapter_is_recorded(lora, train) -> None:
    ended = train("adapter=lora", *QUICK, f"adapter.start_from={lora.folder()}")
    assert ended.code == 0, ended.out
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
        (("adapter=lora", "rank=4", "backbone.target_modules=[qkv]"), "target_modules="),
    ],
)
def test_another_adapter_is_refused(overrides, said, lora) -> None:
    with pytest.raises(UserError) as refused:
        logits(composed(*overrides, f"adapter.start_from={lora.folder()}"))
    assert said in str(refused.value)


def test_shapes_are_checked_and_nothing_is_taken_for_an_adapter(lora, tmp_path) -> None:
    with pytest.raises(UserError, match=r"adapter\.start_from=.*: there is nothing at that place"):
        logits(composed("adapter=lora", "rank=4", f"adapter.start_from={tmp_path / 'none'}"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        logits(composed("adapter=lora", "rank=4", f"adapter.start_from={tmp_path / 'empty'}"))
    shutil.copytree(lora.folder() / "adapter", tmp_path / "other")
    path = tmp_path / "other" / "adapter_config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "r": 8}))
    with pytest.raises(UserError, match=r"does not fit this run's model: .* is .* and should be"):
        logits(composed("adapter=lora", "rank=8", f"adapter.start_from={tmp_path / 'other'}", "alpha=0.5"))


def test_an_adapter_of_peft_itself_is_a_start(lora, tmp_path) -> None:
    cfg = composed("adapter=lora", "rank=4")
    parts = build(cfg)
    model = PeftModel.from_pretrained(parts.backbone.model, lora.folder() / "adapter")
    model.save_pretrained(str(tmp_path / "peft"))
    start = logits(composed("adapter=lora", "rank=4", f"adapter.start_from={tmp_path / 'peft'}"))
    assert torch.equal(start, logits(composed("adapter=lora", "rank=4", f"adapter.start_from={lora.folder()}")))
