"""Training on one's own texts, records, images and models, by one command each."""

import json

import pytest
from PIL import Image
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from foura.bundled.llama import FOLDER
from tests.helpers.runs import status
from tests.helpers.sizes import QUICK, SMALL
from tests.peers.tiny_models import stable_diffusion


def test_own_text(train, tmp_path) -> None:
    (tmp_path / "book.txt").write_text("It was the best of times, it was the worst of times. " * 100)
    data = ("dataset=text", f"dataset.path={tmp_path / 'book.txt'}", "dataset.block_size=32", "dataset.limit=8")
    ended = train("backbone=llama_small", *data, "evaluation.passages=2", *QUICK)
    assert ended.code == 0, ended.out
    assert status(ended)["metrics"]["test/ppl"] > 1


def slow(value: str) -> object:
    return pytest.param(value, marks=pytest.mark.slow)


RECORDS = {
    "completion": {"prompt": "Say {n}:", "completion": " {n}"},
    "commonsense": {
        "instruction": "Is {n} a number?\n\nAnswer format: true/false",
        "output": "the correct answer is true",
        "answer": "true",
    },
    "verbalizer": {"sentence": "film {n}", "label": 1},
}


@pytest.mark.parametrize("form", [slow("completion"), slow("commonsense"), "verbalizer"])
def test_own_json_lines(train, tmp_path, form) -> None:
    rows = [json.dumps(RECORDS[form]).replace("{n}", str(number)) for number in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    keys = [f"dataset.path={tmp_path / 'data.jsonl'}", f"dataset.format={form}"]
    if form == "verbalizer":
        keys += ["dataset.template='{sentence} was'", "dataset.verbalizer=[' bad',' good']"]
    noise = () if form == "completion" else ("dataset.label_noise=0.2",)  # a completion has no wrong answer
    ended = train("backbone=llama_small", "dataset=jsonl", *keys, *QUICK, *noise)
    assert ended.code == 0, ended.out
    metrics = status(ended)["metrics"]
    assert 0 <= metrics["test/acc"] <= 1 and "memorised/train" not in metrics


def test_own_language_model_from_a_directory(train, tmp_path) -> None:
    shape = {"n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=1024, **shape)).save_pretrained(tmp_path / "gpt")
    AutoTokenizer.from_pretrained(FOLDER).save_pretrained(tmp_path / "gpt")
    keys = (
        f"backbone.name={tmp_path / 'gpt'}",
        "backbone.gradient_checkpointing=true",
        "backbone.torch_dtype=bfloat16",
    )
    ended = train("backbone=llama_small", *keys, *SMALL["llama_small"], *QUICK)
    assert ended.code == 0, ended.out


def images(folder, count=12) -> None:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (24, 24), (15 * number, 100, 0)).save(folder / f"{number}.png")


def test_own_images_and_a_pipeline_from_a_directory(train, tmp_path) -> None:
    """DreamBooth style: one prompt for all images; latents, text encoder and adapters on both."""
    stable_diffusion(tmp_path / "pipe")
    images(tmp_path / "dog")
    keys = [f"backbone.name={tmp_path / 'pipe'}", "backbone.text_encoder=true", "optimizer.text_encoder_lr=5e-5"]
    keys += ["dataset=imagefolder", f"dataset.path={tmp_path / 'dog'}", "dataset.prompt='a photo of sks dog'"]
    ended = train("backbone=unet", *keys, *SMALL["unet"][:2], *SMALL["unet"][3:], *QUICK)
    assert ended.code == 0, ended.out
    assert "test/diversity" in status(ended)["metrics"]
    layers = (ended.folder() / "layers.csv").read_text()
    assert "unet.down_blocks" in layers and "text_encoder." in layers


@pytest.mark.slow
def test_own_images_with_captions(train, tmp_path) -> None:
    images(tmp_path / "folder")
    lines = [json.dumps({"file_name": f"{number}.png", "text": f"tone {number}"}) for number in range(12)]
    (tmp_path / "folder" / "metadata.jsonl").write_text("\n".join(lines))
    data = ("dataset=imagefolder", f"dataset.path={tmp_path / 'folder'}")
    ended = train("backbone=unet", *data, *SMALL["unet"][:2], *SMALL["unet"][3:], *QUICK)
    assert ended.code == 0, ended.out
