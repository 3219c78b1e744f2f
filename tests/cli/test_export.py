"""`foura export`: what comes out loads where foura is not needed, and computes the same."""

import re
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file

from foura.cli import main
from foura.errors import UserError
from foura.families import build
from foura.run.export import export

QUICK = ("rank=4", "dataset.epochs=1", "trainer.max_steps=4", "optimizer.lr=1e-2")
LANGUAGE = ("backbone=llama_small", *QUICK, "dataset.limit=32", "dataset.eval_limit=8", "evaluation.passages=1")
PICTURES = (
    "backbone=unet",
    *QUICK,
    "evaluation.strengths=[1.0]",
    "dataset.repeats=1",
    "evaluation.max_prompts=1",
    "evaluation.sampling_steps=1",
)


def adapted(run):
    """(the run's backbone with its adapter, a fresh backbone)."""
    cfg = OmegaConf.load(run / "config.yaml")
    parts = build(cfg)
    return PeftModel.from_pretrained(parts.backbone.model, str(run / "adapter")).eval(), build(
        cfg
    ).backbone.model.eval()


def test_a_language_adapter_as_lora_and_merged(train, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train("adapter=foura_dct_frozen", *LANGUAGE).folder()
    ours, fresh = adapted(run)
    ids = torch.arange(20).unsqueeze(0)
    expected = ours(ids).logits
    assert not torch.allclose(expected, fresh(ids).logits, atol=1e-3)
    export(run, "lora", tmp_path / "lora")
    assert PeftConfig.from_pretrained(str(tmp_path / "lora")).peft_type == "LORA"
    torch.testing.assert_close(
        PeftModel.from_pretrained(fresh, str(tmp_path / "lora")).eval()(ids).logits, expected, rtol=1e-4, atol=1e-4
    )
    export(run, "merged", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").float().eval()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("def f")["input_ids"]
    with pytest.raises(UserError, match="exists already"):
        export(run, "lora", tmp_path / "lora")


def test_an_adaptive_gate_asks_for_freeze(train, tmp_path, monkeypatch, capsys) -> None:
    run = train("adapter=foura", *LANGUAGE).folder()
    monkeypatch.setattr("sys.argv", ["foura", "export", str(run), "--to", "lora", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="add --freeze"):
        main()
    monkeypatch.setattr("sys.argv", ["foura", "export", str(run), "--to", "lora", str(tmp_path / "out"), "--freeze"])
    main()
    written = tmp_path / "out" / "adapter_model.safetensors"
    said = capsys.readouterr().out
    found = re.search(
        r"Frozen gates: (\d+) of (\d+) ranks kept, (\d+) to (\d+) by layer; "
        r"validation loss ([\d.]+) with adaptive gates, ([\d.]+) frozen\. ([\d.]+) MB, ([\d.]+) MB with adaptive gates\.",
        said,
    )
    assert found, said
    kept, ranks, least, most, before, after, now, was = map(float, found.groups())
    assert 0 <= least <= most <= kept <= ranks and abs(after - before) < 1
    assert now == pytest.approx(written.stat().st_size / 1e6, abs=0.006)
    adapter = run / "adapter" / "adapter_model.safetensors"
    assert was == pytest.approx(adapter.stat().st_size / 1e6, abs=0.006)


@pytest.mark.slow
def test_the_libraries_behind_an_export_say_nothing(train, run_env, tmp_path) -> None:
    run = train("adapter=foura", *QUICK, "dataset.limit=40").folder()
    command = [sys.executable, "-m", "foura", "export", str(run), "--to", "lora", str(tmp_path / "out"), "--freeze"]
    ended = subprocess.run(command, env=run_env, capture_output=True, text=True, check=True)
    assert ended.stderr == "" and len(ended.stdout.splitlines()) == 1


def test_a_diffusion_adapter_for_diffusers_and_kohya(train, tmp_path) -> None:
    from diffusers import UNet2DConditionModel

    run = train("adapter=foura_dct", *PICTURES).folder()
    ours, fresh = adapted(run)
    inputs = {"sample": torch.randn(1, 3, 16, 16), "timestep": torch.tensor([10])}
    text = torch.randn(1, 4, 64)
    expected = ours.get_submodule("base_model.model.unet")(**inputs, encoder_hidden_states=text).sample
    export(run, "lora", tmp_path / "lora")
    keys = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert keys and all(key.startswith("unet.") and not key.startswith("unet.unet.") for key in keys)
    unet = fresh.unet
    unet.load_lora_adapter(keys, prefix="unet")
    torch.testing.assert_close(unet(**inputs, encoder_hidden_states=text).sample, expected, rtol=1e-4, atol=1e-4)
    export(run, "kohya", tmp_path / "kohya")
    names = load_file(tmp_path / "kohya" / "pytorch_lora_weights.safetensors")
    assert names and all(name.startswith("lora_unet_") and not name.startswith("lora_unet_unet") for name in names)
    export(run, "merged", tmp_path / "merged")
    merged = UNet2DConditionModel.from_pretrained(tmp_path / "merged" / "unet").eval()
    torch.testing.assert_close(merged(**inputs, encoder_hidden_states=text).sample, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_an_image_model_merged(adapter, train, tmp_path) -> None:
    run = train(f"adapter={adapter}", *QUICK, "dataset.limit=40").folder()
    export(run, "merged", tmp_path / "merged")
    cfg = OmegaConf.load(run / "config.yaml")
    model = build(cfg).backbone.model
    model.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    images = torch.randn(2, 1, 16, 16)
    if adapter == "lora":
        ours, _ = adapted(run)
        torch.testing.assert_close(model.eval()(images), ours(images), rtol=1e-4, atol=1e-4)
        export(run, "lora", tmp_path / "lora")
        fresh = build(cfg).backbone.model
        again = PeftModel.from_pretrained(fresh, str(tmp_path / "lora")).eval()
        torch.testing.assert_close(again(images), ours(images), rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(UserError, match="adapter=full has an update that is not that of an ordinary LoRA"):
        export(run, "lora", tmp_path / "lora")
