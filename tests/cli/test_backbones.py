"""Language and diffusion from the outside: every adapter on every backbone, own data and models by one command each."""

import csv
import json

import pytest
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from PIL import Image

FAMILIES = {
    "vit": ("dataset.limit=20",),
    "llama_small": ("dataset.limit=16", "dataset.eval_limit=8", "evaluation.passages=2", "evaluation.passage_tokens=4"),
    "unet": (
        *("dataset.limit=8", "dataset.eval_limit=8", "dataset.repeats=1", "evaluation.sampling_steps=2"),
        *("evaluation.strengths=[1.0]", "evaluation.max_prompts=2", "evaluation.seeds_per_prompt=2"),
    ),
}
QUICK = ("rank=4", "trainer.max_epochs=1")
# loss, accuracy where there is one, and what only the family has; per epoch, at the end, and on test
COMMON = {
    "train/loss",
    "train_eval/loss",
    "val/loss",
    "gap/loss",
    "final/loss",
    "final/gap_loss",
    "best/loss",
    "test/loss",
}
COMMON |= {
    "overfit/onset_epoch",
    "cost/trainable_params",
    "cost/step_time_ms",
    "cost/peak_memory_mb",
    "adapter/delta_norm",
}
OWN = {
    "llama_small": {
        "val/acc",
        "val/ppl",
        "gap/acc",
        "test/acc",
        "test/ppl",
        "test/bpb",
        "memorised/train",
        "memorised/val",
    },
    "unet": {"test/frechet", "test/kernel", "test/diversity", "test/copy_distance", "test/legible"},
}
PICTURES = {
    "llama_small": {"completions.txt"},
    "unet": {"samples", "samples.png", "strengths.csv", "strengths.png", "ranks_by_step.csv", "ranks_by_step.png"},
}


def status(ended) -> dict:
    (path,) = ended.outputs.glob("runs/*/status.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("family", ["llama_small", "unet"])
def test_a_run_leaves_its_metrics_and_pictures(train, family) -> None:
    ended = train(f"backbone={family}", "adapter=foura", *FAMILIES[family], *QUICK, "evaluation.pictures_every=1")
    assert ended.code == 0, ended.out
    assert "ETA" in ended.out
    state, store = status(ended), MlflowClient(f"sqlite:///{ended.outputs / 'mlflow.db'}")
    run = store.get_run(state["run_id"])
    assert set(run.data.metrics) >= COMMON | OWN[family] | {"adapter/effective_rank"}
    assert run.data.tags["backbone"] == family and run.data.params["adapter.gate"] == "adaptive"
    assert run.data.params["adapter.gate_scope"] == ("token" if family == "llama_small" else "sequence")
    artifacts = {item.path for item in store.list_artifacts(state["run_id"])}
    assert artifacts >= {"adapter", "config.yaml", "curves.png", "layers.png", "layers.csv"} | PICTURES[family]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_runs_on_every_backbone(train, root, family) -> None:
    adapters = sorted(path.stem for path in (root / "conf" / "adapter").glob("*.yaml"))
    every = (f"backbone={family}", f"adapter={','.join(adapters)}")
    ended = train("-m", *every, "sweep=all", *FAMILIES[family], "rank=4", "trainer.max_epochs=2")
    assert ended.code == 0, ended.out
    states = [json.loads(path.read_text()) for path in ended.outputs.glob("sweeps/all/*/status.json")]
    assert [state["state"] for state in states] == ["finished"] * len(adapters)
    for state in states:
        assert state["metrics"]["test/loss"] < 10


@pytest.mark.parametrize("adapter", ["foura", "lora"])
def test_the_saved_language_adapter_is_the_tested_one(train, adapter) -> None:
    """Loaded by PEFT into transformers' own model, it has the test loss that was reported."""
    import torch
    from peft import PeftModel

    from foura.families.language.backbone import build_llama
    from foura.families.language.data import prepare_text
    from foura.families.language.sources import open_text

    ended = train("backbone=llama_small", f"adapter={adapter}", *FAMILIES["llama_small"], *QUICK, "optimizer.lr=1e-2")
    cfg = OmegaConf.load(ended.folder() / "config.yaml")
    backbone = build_llama(cfg.backbone)
    source = open_text(cfg.dataset, "text")
    data = prepare_text(source, cfg.dataset, cfg.seed, backbone.tokenizer, backbone.max_tokens)
    model = PeftModel.from_pretrained(backbone.model, str(ended.folder() / "adapter")).eval()
    batch = data.collate(data.test)
    with torch.no_grad():
        loss = float(model(input_ids=batch["input_ids"], labels=batch["labels"]).loss)
    assert loss == pytest.approx(status(ended)["metrics"]["test/loss"], rel=1e-5)


def test_own_text(train, tmp_path) -> None:
    (tmp_path / "book.txt").write_text("It was the best of times, it was the worst of times. " * 100)
    data = ("dataset=text", f"dataset.path={tmp_path / 'book.txt'}", "dataset.block_size=32", "dataset.limit=8")
    ended = train("backbone=llama_small", *data, "evaluation.passages=2", *QUICK)
    assert ended.code == 0, ended.out
    assert status(ended)["metrics"]["test/ppl"] > 1


RECORDS = {
    "completion": {"prompt": "Say {n}:", "completion": " {n}"},
    "commonsense": {
        "instruction": "Is {n} a number?\n\nAnswer format: true/false",
        "output": "the correct answer is true",
        "answer": "true",
    },
    "verbalizer": {"sentence": "film {n}", "label": 1},
}


@pytest.mark.parametrize("form", RECORDS)
def test_own_json_lines(train, tmp_path, form) -> None:
    rows = [json.dumps(RECORDS[form]).replace("{n}", str(number)) for number in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    keys = [f"dataset.path={tmp_path / 'data.jsonl'}", f"dataset.format={form}"]
    if form == "verbalizer":
        keys += ["dataset.template='{sentence} was'", "dataset.verbalizer=[' bad',' good']"]
    ended = train("backbone=llama_small", "dataset=jsonl", *keys, *QUICK, "dataset.label_noise=0.2")
    assert ended.code == 0, ended.out
    metrics = status(ended)["metrics"]
    assert 0 <= metrics["test/acc"] <= 1 and "memorised/train" not in metrics


def test_own_language_model_from_a_directory(train, tmp_path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from foura.bundled.llama import FOLDER

    shape = {"n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=1024, **shape)).save_pretrained(tmp_path / "gpt")
    AutoTokenizer.from_pretrained(FOLDER).save_pretrained(tmp_path / "gpt")
    keys = (
        f"backbone.name={tmp_path / 'gpt'}",
        "backbone.gradient_checkpointing=true",
        "backbone.torch_dtype=bfloat16",
    )
    ended = train("backbone=llama_small", *keys, *FAMILIES["llama_small"], *QUICK)
    assert ended.code == 0, ended.out


def pictures(folder, count=12) -> None:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (24, 24), (15 * number, 100, 0)).save(folder / f"{number}.png")


def test_own_pictures_and_a_pipeline_from_a_directory(train, tmp_path) -> None:
    """DreamBooth style: one prompt for all pictures; latents, text encoder and adapters on both."""
    from tests.peers.tiny_models import stable_diffusion

    stable_diffusion(tmp_path / "pipe")
    pictures(tmp_path / "dog")
    keys = [f"backbone.name={tmp_path / 'pipe'}", "backbone.text_encoder=true", "optimizer.text_encoder_lr=5e-5"]
    keys += ["dataset=imagefolder", f"dataset.path={tmp_path / 'dog'}", "dataset.prompt='a photo of sks dog'"]
    ended = train("backbone=unet", *keys, *FAMILIES["unet"][:2], *FAMILIES["unet"][3:], *QUICK)
    assert ended.code == 0, ended.out
    assert "test/diversity" in status(ended)["metrics"]
    layers = (ended.folder() / "layers.csv").read_text()
    assert "unet.down_blocks" in layers and "text_encoder." in layers


def test_own_pictures_with_captions(train, tmp_path) -> None:
    pictures(tmp_path / "folder")
    lines = [json.dumps({"file_name": f"{number}.png", "text": f"tone {number}"}) for number in range(12)]
    (tmp_path / "folder" / "metadata.jsonl").write_text("\n".join(lines))
    data = ("dataset=imagefolder", f"dataset.path={tmp_path / 'folder'}")
    ended = train("backbone=unet", *data, *FAMILIES["unet"][:2], *FAMILIES["unet"][3:], *QUICK)
    assert ended.code == 0, ended.out


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["backbone=llama_small", "dataset=digits"], "dataset=digits does not go with backbone=llama_small"),
        (
            ["backbone=unet", "dataset=letters", "dataset.format=text"],
            "dataset.format=text does not go with backbone=unet",
        ),
        (["backbone=unet", "select=acc"], "select=acc is not a metric of backbone=unet; choose loss"),
        (["backbone=llama_small", "adapter.gate_scope=sequence"], "looks at later tokens"),
        (["backbone=llama_small", "backbone.name=./nowhere"], "backbone.name=./nowhere: there is no such directory"),
        (["backbone=unet", "backbone.name=./nowhere"], "backbone.name=./nowhere: there is no such directory"),
        (["backbone=unet", "backbone.text_encoder=true"], "a table without layers to adapt"),
        (["backbone=unet", "rank=500"], "rank 500 is more than layer"),
        (["backbone=llama_small", "dataset=text"], "dataset.path is not set"),
    ],
)
def test_what_cannot_work_is_said_before_training(train, keys, words) -> None:
    import re

    ended = train(*keys)
    assert re.search(words, str(ended.code)), ended.code
    assert str(ended.code).startswith("error: ") and "Traceback" not in ended.out


@pytest.mark.parametrize("family", ["llama_small", "unet"])
def test_a_hub_id_without_a_network_points_to_a_directory(root, run_env, tmp_path, family) -> None:
    import subprocess
    import sys

    keys = [f"backbone={family}", "backbone.name=no/such-model", f"outputs={tmp_path}"]
    command = [sys.executable, str(root / "train.py"), *keys]
    answer = subprocess.run(command, env=run_env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "Traceback" not in answer.stderr
    assert "could not be loaded" in answer.stderr and "name a local directory" in answer.stderr


def test_two_adapters_at_once(train, tmp_path, monkeypatch) -> None:
    """Alone, a run's adapter has the test loss of its run; at strength 0 of the other, so it has beside it."""
    from foura.cli import main

    quick = ("optimizer.lr=1e-2", *FAMILIES["llama_small"], *QUICK)
    one = train("backbone=llama_small", "adapter=foura", *quick, into="one")
    two = train("backbone=llama_small", "adapter=foura_dct", "seed=1", *quick, into="two")
    out = tmp_path / "merged"
    command = [
        "foura",
        "merge-eval",
        str(one.folder()),
        str(two.folder()),
        "--strengths",
        "1.0",
        "0.0",
        "--out",
        str(out),
    ]
    monkeypatch.setattr("sys.argv", command)
    main()
    rows = list(csv.DictReader((out / "merged.csv").open()))
    loss = {(row["data"], row["adapters"]): float(row["test/loss"]) for row in rows}
    reported = status(one)["metrics"]["test/loss"]
    assert loss["run1", "run1"] == pytest.approx(reported, rel=1e-5) == loss["run1", "run1+run2"]
    assert (
        loss["run2", "run2"]
        == pytest.approx(status(two)["metrics"]["test/loss"], rel=1e-5)
        != loss["run2", "run1+run2"]
    )
    other = train("backbone=llama_small", "adapter=lora", *quick, into="other")
    monkeypatch.setattr("sys.argv", ["foura", "merge-eval", str(one.folder()), str(other.folder())])
    with pytest.raises(SystemExit, match="adapters of one method in a model, and these are of foura, lora"):
        main()
    monkeypatch.setattr("sys.argv", ["foura", "merge-eval", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit, match="is not a finished run"):
        main()


def test_adalora_needs_steps_to_plan_over(train) -> None:
    ended = train("adapter=adalora", *FAMILIES["vit"], *QUICK)
    assert "needs at least 2 steps; this run makes 1" in str(ended.code)
