"""`python train.py` from the outside, on the default backbone: what runs and sweeps leave."""

import csv
import json

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel

from foura.families.images.backbone import build_vit
from tests.helpers.commands import Ended
from tests.helpers.runs import children, client, scientific, status, statuses

QUICK = ("rank=4", "dataset.limit=40", "trainer.max_epochs=2")
METRICS = {
    *("train/loss", "train_eval/loss", "train_eval/acc", "val/loss", "val/acc", "gap/loss", "gap/acc"),
    *("final/loss", "final/acc", "final/gap_loss", "final/gap_acc", "best/loss", "best/acc", "test/loss", "test/acc"),
    *("overfit/onset_epoch", "cost/trainable_params", "cost/step_time_ms", "cost/peak_memory_mb"),
    *("adapter/effective_rank", "adapter/delta_norm"),
}
TAGS = {"sweep", "adapter", "transform", "gate", "backbone", "dataset", "rank", "alpha", "seed", "data_fingerprint"}


# an adapter of every kind: no adapter, LoRA, each transform and gate, one of each way in which PEFT's own are configured
KINDS = ("head", "full", "lora", "foura", "foura_dct_frozen", "foura_dft", "adalora", "sora", "vera", "fourierft")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, train_into) -> Ended:
    """A run of FouRA."""
    return train_into(tmp_path_factory.mktemp("finished") / "outputs", "adapter=foura", *QUICK)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, train_into) -> Ended:
    """A sweep with an adapter of every kind."""
    outputs = tmp_path_factory.mktemp("kinds") / "outputs"
    return train_into(outputs, "-m", f"adapter={','.join(KINDS)}", "sweep=kinds", *QUICK[:2], "trainer.max_epochs=1")


@pytest.mark.xdist_group("finished")
def test_a_run_leaves_what_the_contract_says(finished) -> None:
    ended = finished
    assert ended.code == 0
    assert "open ranks" in ended.out
    assert "Look at the runs: foura ui" in ended.out
    assert "ETA" in ended.out
    state = status(ended)
    assert state["state"] == "finished"
    assert state["key"]
    assert state["metrics"]["test/acc"] > 0.1
    run = client(ended.outputs).get_run(state["run_id"])
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) >= METRICS
    assert len(run.data.metrics) <= 26  # "about 25", and forgetting
    assert TAGS | {"mlflow.source.git.commit"} <= set(run.data.tags)
    assert run.data.tags["adapter"] == "foura"
    assert run.data.tags["gate"] == "adaptive"
    assert run.data.params["adapter.transform"] == "dct"
    assert run.data.params["optimizer.lr"] == "0.001"
    artifacts = {item.path for item in client(ended.outputs).list_artifacts(state["run_id"])}
    assert artifacts == {
        "adapter",
        "config.yaml",
        "curves.png",
        "layers.png",
        "layers.csv",
        "spectra.csv",
        "gates.png",
        "open_counts.csv",
        "ranks_by_epoch.csv",
        "test_items.csv",
    }
    by_epoch = list(csv.DictReader((ended.folder() / "ranks_by_epoch.csv").open()))
    assert [row["epoch"] for row in by_epoch] == ["0", "1"] and len(by_epoch[0]) == 1 + 16
    counts = list(csv.DictReader((ended.folder() / "open_counts.csv").open()))
    inputs = {
        layer: sum(int(row["inputs"]) for row in counts if row["layer"] == layer)
        for layer in by_epoch[0]
        if layer != "epoch"
    }
    assert set(inputs.values()) == {40}
    history = client(ended.outputs).get_metric_history(state["run_id"], "val/acc")
    assert [point.step for point in history] == [0, 1]
    opened = client(ended.outputs).get_metric_history(state["run_id"], "adapter/open_ranks")
    assert [point.step for point in opened] == [0, 1] and all(3.0 < point.value <= 4.0 for point in opened)
    for metric, sign in (("acc", 1), ("loss", -1)):
        row = run.data.metrics
        gap = sign * (row[f"train_eval/{metric}"] - row[f"val/{metric}"])
        assert row[f"gap/{metric}"] == pytest.approx(gap)
        assert row[f"final/gap_{metric}"] == pytest.approx(gap)


@pytest.mark.slow
def test_a_price_closes_ranks_of_the_bundled_vit(train) -> None:
    """Open ranks fall with every step of λ, and frozen exports with them."""
    gate = ("adapter.gate_form=hard", "adapter.gate_scope=token", "adapter.lr=3e-3", "adapter.gate_lr=5e-2")
    opened = []
    for price in (0, 0.003, 0.03, 0.3):
        ended = train(
            "adapter=foura", "rank=8", "dataset.epochs=8", *gate, f"adapter.gate_sparsity={price}", into=f"{price}"
        )
        opened.append(status(ended)["metrics"]["adapter/effective_rank"])
        saved = json.loads((ended.folder() / "adapter" / "adapter_config.json").read_text())
        assert (saved["gate_form"], saved["gate_sparsity"]) == ("hard", price)
    assert opened == sorted(opened, reverse=True) and opened[-1] < 0.5 * opened[0], opened


@pytest.mark.slow
def test_the_default_gate_selects_ranks(train) -> None:
    """Criterion (a) of experiments/gates: open ranks vary over inputs in a quarter of the layers, and over the layers."""
    ended = train("adapter=foura", "rank=16")
    layers = pd.read_csv(ended.folder() / "layers.csv")
    assert (layers["open_std"] > 0.05 * 16).mean() >= 0.25
    assert layers["effective_rank"].std(ddof=0) > 0.05 * 16
    assert f"{layers['effective_rank'].mean():.1f} ± {layers['open_std'].mean():.1f}" in ended.out


def test_the_saved_adapter_is_the_tested_one(train) -> None:
    """Loaded into a fresh backbone by PEFT alone, the adapter has the test accuracy that was reported."""
    from foura.families.images.data import prepare
    from foura.families.images.sources import open_source

    ended = train("adapter=foura_dft_gated", *QUICK)
    cfg = OmegaConf.load(ended.folder() / "config.yaml")
    backbone = build_vit(cfg.backbone, 10)
    data = prepare(open_source(cfg.dataset), cfg.dataset, cfg.seed, backbone.image_mode, backbone.preprocess)
    model = PeftModel.from_pretrained(backbone.model, str(ended.folder() / "adapter")).eval()
    images, labels = data.test.tensors
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(status(ended)["metrics"]["test/acc"], abs=1e-6)


@pytest.mark.xdist_group("finished")
def test_same_seed_same_result(finished, train) -> None:
    first, again = scientific(status(finished)["metrics"]), train("adapter=foura", *QUICK, into="again")
    assert first == scientific(status(again)["metrics"])
    assert first != scientific(status(train("adapter=foura", *QUICK, "seed=1", into="other"))["metrics"])


@pytest.mark.xdist_group("kinds")
def test_a_sweep_has_one_parent(kinds) -> None:
    assert kinds.code == 0, kinds.out
    assert [one["state"] for one in statuses(kinds.outputs, "kinds").values()] == ["finished"] * len(KINDS)
    (parent,), runs = children(kinds.outputs, "kinds")
    assert sorted(run.data.tags["adapter"] for run in runs) == sorted(KINDS)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert {run.data.tags["sweep"] for run in runs} == {"kinds"}
    params = {run.data.tags["adapter"]: run.data.metrics["cost/trainable_params"] for run in runs}
    assert params["head"] < params["vera"] < params["lora"] <= params["foura_dft"] < params["foura"] < params["full"]


@pytest.mark.xdist_group("kinds")
def test_a_frozen_adapter_is_saved_frozen(kinds) -> None:
    (folder,) = kinds.outputs.glob("sweeps/kinds/adapter=foura_dct_frozen,*")
    saved = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert saved["gate"] == "frozen"
    state = json.loads((folder / "status.json").read_text())
    with open(folder / "layers.csv", encoding="utf-8") as file:
        opened = [float(row["effective_rank"]) for row in csv.DictReader(file)]
    assert all(rank == int(rank) for rank in opened)
    assert state["metrics"]["adapter/effective_rank"] == pytest.approx(sum(opened) / len(opened))
    history = client(kinds.outputs).get_metric_history(state["run_id"], "val/acc")
    assert [point.step for point in history] == [0]  # the evaluation after freezing is not an epoch


def test_a_sweep_without_a_name_gets_the_same_one_for_the_same_command(train) -> None:
    command = ("-m", "adapter=head", "seed=0,1", *QUICK[:2], "trainer.max_epochs=1")
    first, second = train(*command), train(*command)
    assert first.code == second.code == 0
    (sweep,) = (first.outputs / "sweeps").iterdir()
    assert len(list(sweep.glob("*/status.json"))) == 2


@pytest.mark.slow
def test_the_gate_of_the_default_run_selects(train) -> None:
    """After the default training the gates differ between inputs, and the kept ranks between layers."""
    ended = train("adapter=foura", "rank=64")
    assert ended.code == 0
    with open(ended.folder() / "layers.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    spread = [float(row["gate_std"]) for row in rows]
    kept = [float(row["effective_rank"]) for row in rows]
    assert sum(spread) / len(spread) > 0.02  # of gates in [0.018, 0.982]; a constant gate has 0
    assert max(kept) - min(kept) > 5
    assert 0 < min(kept) < 60
    assert status(ended)["metrics"]["test/acc"] > 0.85


def test_soras_gates_close_and_become_part_of_an_ordinary_lora(train) -> None:
    ended = train("adapter=sora", "adapter.sparsity=200", *QUICK)
    assert ended.code == 0, ended.out
    metrics = status(ended)["metrics"]
    assert 0 < metrics["adapter/effective_rank"] < 4
    cfg = OmegaConf.load(ended.folder() / "config.yaml")
    model = PeftModel.from_pretrained(build_vit(cfg.backbone, 10).model, str(ended.folder() / "adapter"))
    rows = [p.abs().sum(1) for name, p in model.named_parameters() if "lora_A" in name]
    open_ranks = sum(int((row > 0).sum()) for row in rows) / len(rows)
    assert open_ranks == pytest.approx(metrics["adapter/effective_rank"])


@pytest.mark.parametrize(
    ("keys", "epochs"),
    [
        ("trainer.max_steps=1", [0]),  # of two in an epoch
        pytest.param("trainer.max_steps=3", [0, 1], marks=pytest.mark.slow),
        pytest.param("trainer.max_steps=2 trainer.check_val_every_n_epoch=5", [0], marks=pytest.mark.slow),
        ("trainer.check_val_every_n_epoch=2", [1, 2]),
    ],
)
def test_the_last_step_is_evaluated_wherever_it_is(train, keys, epochs) -> None:
    ended = train("rank=4", "dataset.limit=40", "trainer.max_epochs=3", *keys.split())
    assert ended.code == 0, ended.out
    run = client(ended.outputs).get_run(status(ended)["run_id"])
    history = client(ended.outputs).get_metric_history(run.info.run_id, "val/loss")
    assert [entry.step for entry in history] == epochs
    assert (ended.folder() / "adapter" / "adapter_model.safetensors").is_file()
    assert "adapts 16 of 16 linear layers, 100 % of the linear weights" in " ".join(ended.out.split())
