"""Impossible commands end in one sentence, before anything is trained where that can be known."""

import json
import re

import pytest
import torch

from tests.helpers.runs import status

BAD = {
    "rank=0": "rank must be at least 1, got 0",
    "rank=4096": "rank 4096 is more than layer blocks.0.attn.qkv (128 -> 384) can hold: at most 128",
    "backbone.target_modules=[q_proj]": "the model has: patch_embed.proj, blocks.*.attn.qkv (4), blocks.*.attn.proj (4)",
    "dataset.classes=[1,2,eleven]": "eleven is not a class of the data; it has: 0, 1",
    "dataset.classes=[1]": "the train split has 1 class among",
    "dataset=imagefolder dataset.path=nowhere": "dataset.path=nowhere: there is nothing at that place",
    "dataset=hf dataset.path=./nowhere": "dataset.path=./nowhere: there is nothing at that place",
    "backbone.name=vit_tinny_patch16_224": "is neither a timm model nor a folder here. Did you mean vit_tiny_patch16_224",
    "backbone.pretrained=missing.safetensors": "backbone.pretrained=missing.safetensors: there is nothing at that place",
    "+adapter.options.no_such=1 adapter=lora": "LoraConfig has no such field",
    "optimizer.lr=1e30": "loss became",
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
        (["backbone=unet", "evaluation.sampling_steps=1001"], "is more than the 1000 noise levels of the model"),
        (["backbone=unet", "evaluation.seeds_per_prompt=1000000000"], "makes more than 100,000 images of all prompts"),
        (["backbone=llama_small", "dataset=text"], "dataset.path is not set"),
    ],
)
def test_what_cannot_work_is_said_before_training(train, keys, words) -> None:
    ended = train(*keys)
    assert re.search(words, str(ended.code)), ended.code
    assert str(ended.code).startswith("error: ") and "Traceback" not in ended.out


@pytest.mark.parametrize("family", ["llama_small", "unet"])
def test_a_hub_id_without_a_network_points_to_a_directory(train, family) -> None:
    said = train(f"backbone={family}", "backbone.name=no/such-model").code
    assert said.startswith("error: ") and "\n" not in said
    assert "could not be loaded" in said and "name a local directory" in said


def test_adalora_needs_steps_to_plan_over(train) -> None:
    ended = train("adapter=adalora", "dataset.limit=20", "rank=4", "trainer.max_epochs=1")
    assert "needs at least 2 steps; this run makes 1" in str(ended.code)
