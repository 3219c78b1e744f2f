"""Exports need a run's folder and its model, hold all that was trained, and are compared with the adapted model.

The runs are made by hand: a config, and an adapter of random numbers.
"""

import copy
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from foura.bundled.llama import FOLDER
from foura.cli import main
from foura.errors import UserError
from foura.families.diffusion.backbone import build_unet
from foura.families.encoder.backbone import build_encoder
from foura.families.images.backbone import build_vit
from foura.families.language.backbone import build_llama
from foura.methods.attach import attach
from foura.run import export as of_exports
from foura.run.export import export
from foura.run.load import load_adapter, read_config
from tests.helpers.config import composed
from tests.peers.tiny_models import stable_diffusion

ADAPTER = ("adapter=foura_dct", "rank=4", "alpha=2.0")
GONE = "dataset.path=/nowhere/at/all"


def made(run: Path, backbone, cfg: DictConfig) -> PeftModel:
    """The folder `run` of a finished run of `cfg`; returns its model."""
    model = attach(backbone, cfg, steps=10)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(str(run / "adapter"), save_embedding_layers=False)
    OmegaConf.save(cfg, run / "config.yaml", resolve=True)
    return model.eval()


def language(run: Path, *overrides: str) -> tuple[PeftModel, Tensor]:
    """(the model of a run on a text that is not there any more, token ids)."""
    cfg = composed("backbone=llama_small", "dataset=text", GONE, *ADAPTER, *overrides)
    return made(run, build_llama(cfg.backbone), cfg), torch.arange(20)[None]


@torch.no_grad()
def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    found = model.eval()(inputs)
    return getattr(found, "logits", found)


def assert_close(found: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


# -- the model alone


def test_a_language_run_is_exported_without_its_data(tmp_path) -> None:
    model, ids = language(tmp_path / "run")
    expected = logits(model, ids)
    said = export(tmp_path / "run", "lora", tmp_path / "lora")
    assert "rank 4, for PEFT, transformers, vLLM (--max-lora-rank 8)" in said
    fresh = build_llama(read_config(tmp_path / "run").backbone).model
    assert_close(logits(PeftModel.from_pretrained(fresh, str(tmp_path / "lora")), ids), expected)
    said = export(tmp_path / "run", "merged", tmp_path / "merged")
    assert "its outputs agree with the adapted model's to" in said
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids), expected)
    assert not list(tmp_path.glob(".*"))  # nothing is left beside it


def test_freezing_needs_the_data_and_says_so(tmp_path) -> None:
    language(tmp_path / "run", "adapter=foura")
    with pytest.raises(UserError, match=r"--freeze calibrates the gate on the run's training data: dataset.path="):
        export(tmp_path / "run", "lora", tmp_path / "out", freeze=True)


def test_freezing_says_how_many_ranks_it_kept(tmp_path, monkeypatch, capsys) -> None:
    """As many as the exported LoRA has columns that are not zero. Nothing is looked up on the hub."""
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", pytest.fail)
    cfg = composed("backbone=vit", "dataset=digits", "dataset.limit=20", "adapter=foura", "rank=4")
    model = made(tmp_path / "run", build_vit(cfg.backbone, 10), cfg)
    for name, parameter in model.named_parameters():
        if "foura_gate" in name:  # so large that about half of the gates close
            nn.init.normal_(parameter, std=20.0)
    model.save_pretrained(str(tmp_path / "run" / "adapter"), save_embedding_layers=False)
    monkeypatch.setattr(
        "sys.argv", ["foura", "export", str(tmp_path / "run"), "--to", "lora", str(tmp_path / "out"), "--freeze"]
    )
    main()
    told = re.search(r"out: .*Frozen gates: (\d+) of (\d+) ranks kept, ", capsys.readouterr().out)
    ups = [t for key, t in load_file(tmp_path / "out" / "adapter_model.safetensors").items() if "lora_B" in key]
    assert told and int(told[2]) == 4 * len(ups) == 64
    assert int(told[1]) == sum(int((up != 0).any(0).sum()) for up in ups) < 64


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("foura_dct", "embedded"),
        pytest.param("full", "embedded", marks=pytest.mark.slow),
        ("lora", "test_vit"),
        pytest.param("full", "test_vit", marks=pytest.mark.slow),
    ],
)
def test_an_image_run_is_exported_without_its_data(method, name, tmp_path) -> None:
    """Its number of classes is in what it has saved. timm loads the size of the images from the folder."""
    size = () if name == "embedded" else (f"backbone.name={name}", "backbone.pretrained=false", "backbone.img_size=32")
    cfg = composed("backbone=vit", "dataset=imagefolder", GONE, "rank=4", f"adapter={method}", *size)
    backbone = build_vit(cfg.backbone, 3)
    if name != "embedded":  # a random start is another one each time
        torch.save(backbone.model.state_dict(), tmp_path / "start.pt")
        cfg.backbone.pretrained = str(tmp_path / "start.pt")
        backbone = build_vit(cfg.backbone, 3)
    if method == "full":
        model = attach(backbone, cfg, 10)
        nn.init.normal_(model.head.weight)
        (tmp_path / "run" / "adapter").mkdir(parents=True)
        from safetensors.torch import save_file

        save_file(model.state_dict(), tmp_path / "run" / "adapter" / "model.safetensors")
        OmegaConf.save(cfg, tmp_path / "run" / "config.yaml", resolve=True)
    else:
        model = made(tmp_path / "run", backbone, cfg)
    images = torch.randn(2, *((1, 16, 16) if name == "embedded" else (3, 32, 32)))
    expected = logits(model, images)
    assert expected.shape == (2, 3)
    assert "agree with the adapted model's" in export(tmp_path / "run", "merged", tmp_path / "merged")
    if name == "embedded":
        fresh = build_vit(composed("backbone=vit").backbone, 3).model
        fresh.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    else:
        import timm

        fresh = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True)
    assert_close(logits(fresh, images), expected)


@pytest.mark.parametrize(
    ("form", "outputs"),
    [
        ("classification", 3),
        pytest.param("classification", 1, marks=pytest.mark.slow),
        pytest.param("regression", 1, marks=pytest.mark.slow),
    ],
)
def test_an_encoder_run_is_exported_without_its_data(form, outputs, tmp_path) -> None:
    cfg = composed("backbone=bert", "dataset=jsonl", GONE, f"dataset.format={form}", *ADAPTER)
    backbone = build_encoder(cfg.backbone, None if form == "regression" else [str(n) for n in range(outputs)])
    expected = logits(made(tmp_path / "run", backbone, cfg), torch.arange(20)[None])
    assert expected.shape == (1, outputs)
    assert "agree" in export(tmp_path / "run", "merged", tmp_path / "merged")
    loaded = type(backbone.model).from_pretrained(tmp_path / "merged")
    assert_close(logits(loaded, torch.arange(20)[None]), expected)


# -- from any folder


@pytest.mark.parametrize("moved", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_relative_paths_is_exported_from_any_folder(moved, tmp_path, monkeypatch) -> None:
    start, elsewhere = tmp_path / "start", tmp_path / "elsewhere"
    shutil.copytree(FOLDER, start / "models" / "mine")
    (elsewhere / "models" / "mine").mkdir(parents=True)  # what the path means here is not what it meant there
    monkeypatch.chdir(start)
    model, ids = language(start / "outputs" / "runs" / "r", "backbone.name=models/mine")
    expected = logits(model, ids)
    noted = start / "outputs" / "runs" / "r" / ".hydra" / "hydra.yaml"
    noted.parent.mkdir()
    noted.write_text(f"hydra:\n  runtime:\n    cwd: {start}\n")
    if moved:
        start = start.rename(tmp_path / "moved")
    monkeypatch.chdir(elsewhere)
    export(start / "outputs" / "runs" / "r", "merged", tmp_path / "merged")
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids), expected)


def test_notes_that_say_nothing_are_not_needed(tmp_path) -> None:
    language(tmp_path / "run")
    (tmp_path / "run" / ".hydra").mkdir()
    for notes in ("", "hydra: {runtime: {cwd: [1]}}", "  cwd: [1]", "  cwd: \0", "\xff", "a: &a [*a]"):
        (tmp_path / "run" / ".hydra" / "hydra.yaml").write_text(notes, encoding="latin-1")
        assert read_config(tmp_path / "run").backbone.name == "embedded"


# -- tied weights


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "foura_dct"])
def test_a_tied_output_layer_is_untied_in_the_merged_model(method, tmp_path) -> None:
    model, ids = language(tmp_path / "run", f"adapter={method}", "backbone.target_modules=[q_proj,lm_head]")
    expected = logits(model, ids)
    assert model.config.tie_word_embeddings
    assert "agree" in export(tmp_path / "run", "merged", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_close(logits(merged, ids), expected, atol=1e-3)
    assert not merged.config.tie_word_embeddings


def test_a_merged_model_that_computes_something_else_is_not_kept(tmp_path, monkeypatch) -> None:
    language(tmp_path / "run", "adapter=lora", "backbone.target_modules=[q_proj,lm_head]")
    monkeypatch.setattr(of_exports, "untie", lambda model: [])
    with pytest.raises(
        UserError, match=r"the merged model, loaded again, differs from the adapted one by .*nothing was kept"
    ):
        export(tmp_path / "run", "merged", tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


# -- everything that was trained


@pytest.fixture(params=["foura_dct", "lora", pytest.param("rslora", marks=pytest.mark.slow)])
def pictures(tmp_path, request) -> tuple[PeftModel, Path]:
    """(the model of a run that trained UNet and text encoder, the pipeline's folder)."""
    stable_diffusion(tmp_path / "pipe")
    keys = (f"backbone.name={tmp_path / 'pipe'}", "backbone.text_encoder=true", "dataset=imagefolder", GONE)
    cfg = composed("backbone=unet", "dataset.prompt=a dog", *keys, *ADAPTER, f"adapter={request.param}")
    return made(tmp_path / "run", build_unet(cfg.backbone), cfg), tmp_path / "pipe"


@torch.no_grad()
def parts(unet: nn.Module, text_encoder: nn.Module) -> list[Tensor]:
    noise, ids = torch.Generator().manual_seed(0), torch.arange(10)[None]
    x, text = torch.randn(1, 4, 8, 8, generator=noise), torch.randn(1, 10, 32, generator=noise)
    return [unet.eval()(x, 7, text).sample, text_encoder.eval()(ids).last_hidden_state]


def test_the_text_encoder_is_in_every_form(pictures, tmp_path) -> None:
    model, folder = pictures
    inside = model.base_model.model
    expected = parts(inside.unet, inside.text_encoder)
    starts = {"lora": "text_encoder.text_model.encoder.layers.", "kohya": "lora_te_text_model_encoder_layers_"}
    for form, start in starts.items():
        said = export(tmp_path / "run", form, tmp_path / form)
        assert "diffusers" in said and "ComfyUI" in said
        keys = list(load_file(tmp_path / form / "pytorch_lora_weights.safetensors"))
        assert any(key.startswith(start) for key in keys) and any("unet" in key for key in keys)
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        before = parts(pipe.unet, pipe.text_encoder)
        pipe.load_lora_weights(str(tmp_path / form))
        for found, wanted, bare in zip(parts(pipe.unet, pipe.text_encoder), expected, before, strict=True):
            assert (wanted - bare).abs().max() > 1e-2
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert "agree" in export(tmp_path / "run", "merged", tmp_path / "merged")
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "merged" / "unet")
    text = type(inside.text_encoder).from_pretrained(tmp_path / "merged" / "text_encoder")
    for found, wanted in zip(parts(unet, text), expected, strict=True):
        assert_close(found, wanted)


def test_what_kohya_s_file_cannot_hold_is_refused_by_name(tmp_path) -> None:
    cfg = composed("backbone=unet", "+adapter.options.bias=foura_only", *ADAPTER)
    made(tmp_path / "run", build_unet(cfg.backbone), cfg)
    with pytest.raises(UserError, match=r"--to kohya: kohya's format holds only linear .*, not .*bias"):
        export(tmp_path / "run", "kohya", tmp_path / "out")


@pytest.mark.parametrize(
    "overrides",
    [
        ("adapter=dora",),
        ("adapter=pissa",),
        ("adapter=adalora",),
        ("adapter=loha",),
    ],
    ids=" ".join,
)
def test_an_update_that_is_no_lora_is_refused_before_the_model_is_built(overrides, tmp_path, monkeypatch) -> None:
    cfg = composed("backbone=unet", "rank=4", *overrides)
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(of_exports, "rebuild", pytest.fail)
    for form in ("lora", "kohya"):
        with pytest.raises(
            UserError, match=f"{overrides[0]} has an update that is not that of an ordinary LoRA: use --to"
        ):
            export(tmp_path, form, tmp_path / "out")


# -- a rank per layer


def test_the_command_says_who_reads_the_file(tmp_path, monkeypatch, capsys) -> None:
    model, _ = language(tmp_path / "run", "+adapter.options.rank_pattern={q_proj:2}")
    for folder, more, said in (
        ("even", [], "a LoRA of rank 4, for PEFT, transformers, vLLM (--max-lora-rank 8), SGLang (--max-lora-rank 4)"),
        ("small", ["--per-layer-ranks"], "a LoRA of rank 4 at most, fewer in some layers, for PEFT and transformers"),
    ):
        command = ["foura", "export", str(tmp_path / "run"), "--to", "lora", str(tmp_path / folder), *more]
        monkeypatch.setattr("sys.argv", command)
        main()
        assert f"{tmp_path / folder}: {said}" in capsys.readouterr().out
    ranks = {len(t) for k, t in load_file(tmp_path / "small" / "adapter_model.safetensors").items() if "lora_A" in k}
    assert ranks == {2, 4}
    fresh = build_llama(read_config(tmp_path / "run").backbone).model
    again = load_adapter(copy.deepcopy(fresh), tmp_path / "run", read_config(tmp_path / "run"))
    assert_close(logits(again, torch.arange(20)[None]), logits(model, torch.arange(20)[None]))
