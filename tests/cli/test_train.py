"""`python train.py` from the outside: what a run leaves, sweeps, and bad input."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.runs import client, status

QUICK = ("rank=4", "dataset.limit=40", "trainer.max_epochs=2")
METRICS = {
    *("train/loss", "train_eval/loss", "train_eval/acc", "val/loss", "val/acc", "gap/loss", "gap/acc"),
    *("final/loss", "final/acc", "final/gap_loss", "final/gap_acc", "best/loss", "best/acc", "test/loss", "test/acc"),
    *("overfit/onset_epoch", "cost/trainable_params", "cost/step_time_ms", "cost/peak_memory_mb"),
    *("adapter/effective_rank", "adapter/delta_norm"),
}
TAGS = {"sweep", "adapter", "transform", "gate", "backbone", "dataset", "rank", "alpha", "seed", "data_fingerprint"}


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of two classes that can be told apart."""
    for label, shade in (("dark", 30), ("light", 220)):
        for index in range(20):
            place = tmp_path / "images" / label
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 20), (shade, shade - index, shade)).save(place / f"{index}.png")
    return tmp_path / "images"


def test_a_run_leaves_what_the_contract_says(train, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    ended = train("adapter=foura", *QUICK)
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
    assert len(run.data.metrics) <= 25
    assert TAGS | {"mlflow.source.git.commit"} <= set(run.data.tags)
    assert run.data.tags["adapter"] == "foura"
    assert run.data.tags["gate"] == "adaptive"
    assert run.data.params["adapter.transform"] == "dct"
    assert run.data.params["optimizer.lr"] == "0.001"
    artifacts = {item.path for item in client(ended.outputs).list_artifacts(state["run_id"])}
    assert artifacts == {"adapter", "config.yaml", "curves.png", "layers.png", "layers.csv", "spectra.csv"}
    history = client(ended.outputs).get_metric_history(state["run_id"], "val/acc")
    assert [point.step for point in history] == [0, 1]
    for metric, sign in (("acc", 1), ("loss", -1)):
        row = run.data.metrics
        gap = sign * (row[f"train_eval/{metric}"] - row[f"val/{metric}"])
        assert row[f"gap/{metric}"] == pytest.approx(gap)
        assert row[f"final/gap_{metric}"] == pytest.approx(gap)


def test_the_saved_adapter_is_the_tested_one(train) -> None:
    """Loaded into a fresh backbone by PEFT alone, the adapter has the test accuracy that was reported."""
    from omegaconf import OmegaConf
    from peft import PeftModel

    from foura.families.images.backbone import build_vit
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


def test_same_seed_same_result(train) -> None:
    def result(into: str, *more: str) -> dict:
        metrics = status(train("adapter=foura", *QUICK, *more, into=into))["metrics"]
        return {key: value for key, value in metrics.items() if not key.startswith("cost/")}

    assert result("first") == result("again") != result("other", "seed=1")


def test_a_sweep_of_every_adapter_has_one_parent(train, root) -> None:
    adapters = sorted(path.stem for path in (root / "conf" / "adapter").glob("*.yaml"))
    ended = train("-m", f"adapter={','.join(adapters)}", "sweep=all", *QUICK[:2], "trainer.max_epochs=1")
    assert ended.code == 0
    states = [json.loads(path.read_text()) for path in ended.outputs.glob("sweeps/all/*/status.json")]
    assert [state["state"] for state in states] == ["finished"] * len(adapters)
    store = client(ended.outputs)
    runs = store.search_runs([store.get_experiment_by_name("foura").experiment_id], max_results=100)
    (parent,) = [run for run in runs if run.data.tags["role"] == "sweep"]
    children = [run for run in runs if run.data.tags["role"] == "run"]
    assert sorted(run.data.tags["adapter"] for run in children) == adapters
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["sweep"] for run in children} == {"all"}
    params = {run.data.tags["adapter"]: run.data.metrics["cost/trainable_params"] for run in children}
    assert params["head"] < params["vera"] < params["lora"] <= params["foura_dft"] < params["foura"] < params["full"]
    assert params["lora"] == params["foura_dct"] == params["foura_random"]


def test_a_sweep_without_a_name_gets_the_same_one_for_the_same_command(train) -> None:
    command = ("-m", "adapter=head", "seed=0,1", *QUICK)
    first, second = train(*command), train(*command)
    assert first.code == second.code == 0
    (sweep,) = (first.outputs / "sweeps").iterdir()
    assert len(list(sweep.glob("*/status.json"))) == 2


def test_a_frozen_adapter_is_saved_frozen(train) -> None:
    ended = train("adapter=foura_dct_frozen", *QUICK)
    saved = json.loads((ended.folder() / "adapter" / "adapter_config.json").read_text())
    assert saved["gate"] == "frozen"
    metrics = status(ended)["metrics"]
    with open(ended.folder() / "layers.csv", encoding="utf-8") as file:
        kept = [float(row["effective_rank"]) for row in csv.DictReader(file)]
    assert all(rank == int(rank) for rank in kept)
    assert metrics["adapter/effective_rank"] == pytest.approx(sum(kept) / len(kept))
    history = client(ended.outputs).get_metric_history(status(ended)["run_id"], "val/acc")
    assert [point.step for point in history] == [0, 1]  # the evaluation after freezing is no epoch


def test_own_images_and_another_timm_model(train, images) -> None:
    ended = train("dataset=imagefolder", f"dataset.path={images}", "rank=4", "trainer.max_epochs=4")
    assert ended.code == 0
    assert status(ended)["metrics"]["test/acc"] == 1.0


def test_a_checkpoint_file_goes_through_timms_loading(train, images, tmp_path) -> None:
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("test_vit", num_classes=7)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    ended = train(
        *("dataset=imagefolder", f"dataset.path={images}", "backbone.name=test_vit", "backbone.img_size=32"),
        *(f"backbone.pretrained={tmp_path / 'weights.safetensors'}", "rank=4", "trainer.max_epochs=1", "adapter=foura"),
    )
    assert ended.code == 0, ended.out
    from omegaconf import OmegaConf

    from foura.families.images.backbone import build_vit

    rebuilt = build_vit(OmegaConf.load(ended.folder() / "config.yaml").backbone, 2).model
    assert torch.equal(rebuilt.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert rebuilt.head.weight.shape[0] == 2


def test_frozen_batch_norms_do_not_move(train, images) -> None:
    from safetensors.torch import load_file

    command = (
        "dataset=imagefolder",
        f"dataset.path={images}",
        "backbone.name=test_efficientnet",
        "trainer.max_epochs=1",
    )
    ended = train(*command, "backbone.pretrained=false", "adapter=head", "backbone.img_size=32")
    assert ended.code == 0, ended.out
    state = load_file(ended.folder() / "adapter" / "model.safetensors")
    counts = [int(value) for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert counts
    assert set(counts) == {0}


BAD = {
    "rank=0": "rank must be at least 1, got 0",
    "rank=4096": "rank 4096 is more than layer blocks.0.attn.qkv (128 -> 384) can hold: at most 128",
    "backbone.target_modules=[q_proj]": "the model has: blocks.*.attn.qkv (4), blocks.*.attn.proj (4)",
    "dataset.classes=[1,2,eleven]": "eleven is not a class of the data; it has: 0, 1",
    "dataset.classes=[1]": "the train split has 1 class among",
    "dataset=imagefolder dataset.path=nowhere": "dataset.path=nowhere: there is nothing at that place",
    "dataset=hf dataset.path=./nowhere": "dataset.path=./nowhere: there is nothing at that place",
    "backbone.name=vit_tinny_patch16_224": "is neither a timm model nor a folder here. Did you mean vit_tiny_patch16_224",
    "backbone.pretrained=missing.safetensors": "backbone.pretrained=missing.safetensors: there is nothing at that place",
    "+adapter.options.no_such=1 adapter=lora": "LoraConfig has no such field",
    "optimizer.lr=1e30": "loss became",
    "trainer.max_steps=1": "training ended before its first evaluation",
}


@pytest.mark.parametrize("overrides", BAD)
def test_bad_input_ends_in_one_sentence(train, overrides) -> None:
    ended = train("trainer.max_epochs=3", "dataset.limit=40", *overrides.split())
    assert isinstance(ended.code, str), ended.out
    assert ended.code.startswith("error: ")
    assert BAD[overrides] in ended.code
    assert "\n" not in ended.code
    assert "Traceback" not in ended.out
    state = status(ended)
    assert state["state"] == ("diverged" if overrides.startswith("optimizer") else "failed")
    assert BAD[overrides] in state["error"]
    assert not any(path.name.endswith(("adapter", ".writing")) for path in ended.folder().iterdir())


def test_an_unreadable_image_ends_in_one_sentence(train, images) -> None:
    (images / "dark" / "3.png").write_bytes(b"no image")
    ended = train("dataset=imagefolder", f"dataset.path={images}")
    assert "dark/3.png cannot be read as an image" in ended.code
    assert status(ended)["state"] == "failed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(train) -> None:
    assert "use trainer=cpu" in train("trainer=gpu").code


def test_one_bad_run_does_not_stop_a_sweep(train) -> None:
    ended = train("-m", "rank=4096,4", "adapter=foura_dct", "trainer.max_epochs=1", "dataset.limit=40", "sweep=mixed")
    assert ended.code == 1
    assert ": rank 4096 is more than" in ended.out
    found = ended.outputs.glob("sweeps/mixed/*/status.json")
    states = [json.loads(path.read_text())["state"] for path in found]
    assert sorted(states) == ["failed", "finished"]


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
    from peft import PeftModel

    from foura.families.images.backbone import build_vit

    ended = train("adapter=sora", "adapter.sparsity=200", *QUICK)
    assert ended.code == 0, ended.out
    metrics = status(ended)["metrics"]
    assert 0 < metrics["adapter/effective_rank"] < 4
    from omegaconf import OmegaConf

    cfg = OmegaConf.load(ended.folder() / "config.yaml")
    model = PeftModel.from_pretrained(build_vit(cfg.backbone, 10).model, str(ended.folder() / "adapter"))
    rows = [p.abs().sum(1) for name, p in model.named_parameters() if "lora_A" in name]
    open_ranks = sum(int((row > 0).sum()) for row in rows) / len(rows)
    assert open_ranks == pytest.approx(metrics["adapter/effective_rank"])
