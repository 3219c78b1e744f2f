"""Every family from the outside: what its runs leave, that the saved adapter is the tested one, two adapters at once."""

import csv
import json
from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel

from foura.families.language.backbone import build_llama
from foura.families.language.data import prepare_text
from foura.families.language.sources import open_text
from tests.helpers.commands import Ended, run_foura
from tests.helpers.runs import client, status
from tests.helpers.sizes import QUICK, SMALL

# loss, accuracy where there is one, and what only the family has; per epoch, at the end, and on test
COMMON = {
    *(
        "train/loss",
        "train_eval/loss",
        "val/loss",
        "gap/loss",
        "final/loss",
        "final/gap_loss",
        "best/loss",
        "test/loss",
    ),
    *("overfit/onset_epoch", "cost/trainable_params", "cost/step_time_ms", "cost/peak_memory_mb", "adapter/delta_norm"),
}
OWN = {
    "llama_small": {
        *("val/acc", "val/ppl", "gap/acc", "test/acc", "test/ppl", "test/bpb", "memorised/train", "memorised/val"),
    },
    "bert": {"val/acc", "gap/acc", "test/acc", "test/f1", "test/mcc"},
    "unet": {"test/frechet", "test/kernel", "test/diversity", "test/copy_distance", "test/legible"},
}
MORE = {"unet": ("evaluation.pictures_every=1",)}
PICTURES = {
    "llama_small": {"completions.txt"},
    "bert": set(),
    "unet": {"samples", "samples.png", "strengths.csv", "strengths.png", "ranks_by_step.csv", "ranks_by_step.png"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, train_into) -> Callable[[str], Ended]:
    """runs(family): a run of FouRA on its bundled backbone."""
    ended: dict[str, Ended] = {}

    def run(family: str) -> Ended:
        if family not in ended:
            outputs = tmp_path_factory.mktemp(family) / "outputs"
            more = (*QUICK, "optimizer.lr=1e-2", *MORE.get(family, ()))
            ended[family] = train_into(outputs, f"backbone={family}", "adapter=foura", *SMALL[family], *more)
        return ended[family]

    return run


@pytest.mark.xdist_group("families")
@pytest.mark.parametrize("family", OWN)
def test_a_run_leaves_its_metrics_and_images(runs, family) -> None:
    ended = runs(family)
    assert ended.code == 0, ended.out
    assert "ETA" in ended.out
    state, store = status(ended), client(ended.outputs)
    run = store.get_run(state["run_id"])
    assert set(run.data.metrics) >= COMMON | OWN[family] | {"adapter/effective_rank"}
    assert run.data.tags["backbone"] == family and run.data.params["adapter.gate"] == "adaptive"
    assert run.data.params["adapter.gate_scope"] == ("token" if family == "llama_small" else "sequence")
    artifacts = {item.path for item in store.list_artifacts(state["run_id"])}
    assert artifacts >= {"adapter", "config.yaml", "curves.png", "layers.png", "layers.csv"} | PICTURES[family]


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_every_adapter_runs_on_every_backbone(train, root, family) -> None:
    adapters = sorted(path.stem for path in (root / "conf" / "adapter").glob("*.yaml"))
    every = (f"backbone={family}", f"adapter={','.join(adapters)}")
    ended = train("-m", *every, "sweep=all", *SMALL[family], "rank=4", "trainer.max_epochs=2")
    assert ended.code == 0, ended.out
    states = [json.loads(path.read_text()) for path in ended.outputs.glob("sweeps/all/*/status.json")]
    assert [state["state"] for state in states] == ["finished"] * len(adapters)
    for state in states:
        assert state["metrics"]["test/loss"] < 10


@pytest.mark.xdist_group("families")
def test_the_saved_language_adapter_is_the_tested_one(runs) -> None:
    """Loaded by PEFT into transformers' own model, it has the test loss that was reported."""
    ended = runs("llama_small")
    cfg = OmegaConf.load(ended.folder() / "config.yaml")
    backbone = build_llama(cfg.backbone)
    source = open_text(cfg.dataset, "text")
    data = prepare_text(source, cfg.dataset, cfg.seed, backbone.tokenizer, backbone.max_tokens)
    model = PeftModel.from_pretrained(backbone.model, str(ended.folder() / "adapter")).eval()
    batch = data.collate(data.test)
    with torch.no_grad():
        loss = float(model(input_ids=batch["input_ids"], labels=batch["labels"]).loss)
    assert loss == pytest.approx(status(ended)["metrics"]["test/loss"], rel=1e-5)


@pytest.mark.xdist_group("families")
def test_two_adapters_at_once(runs, train, tmp_path) -> None:
    """Alone, a run's adapter has the test loss of its run; at strength 0 of the other, so it has beside it."""
    quick = ("optimizer.lr=1e-2", *SMALL["llama_small"], *QUICK)
    one, out = runs("llama_small"), tmp_path / "merged"
    two = train("backbone=llama_small", "adapter=foura_dct", "seed=1", *quick, into="two")
    both = (str(one.folder()), str(two.folder()))
    ended = run_foura("merge-eval", *both, "--strengths", "1.0", "0.0", "--out", str(out), outputs=two.outputs)
    assert ended.code == 0, ended.out
    rows = list(csv.DictReader((out / "merged.csv").open()))
    loss = {(row["data"], row["adapters"]): float(row["test/loss"]) for row in rows}
    first, second = (status(run)["metrics"]["test/loss"] for run in (one, two))
    assert loss["run1", "run1"] == pytest.approx(first, rel=1e-5) == loss["run1", "run1+run2"]
    assert loss["run2", "run2"] == pytest.approx(second, rel=1e-5) != loss["run2", "run1+run2"]
    other = train("backbone=llama_small", "adapter=lora", *quick, into="other")
    refused = run_foura("merge-eval", both[0], str(other.folder()), outputs=two.outputs)
    assert "adapters of one method in a model, and these are of foura, lora" in refused.code
    refused = run_foura("merge-eval", str(tmp_path), str(tmp_path), outputs=two.outputs)
    assert "is not a finished run" in refused.code
