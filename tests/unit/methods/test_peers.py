"""Peers: which of PEFT's fields follow the run's config, what is refused before training, and what is saved."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from foura.config import check
from foura.errors import UserError
from foura.families import build
from foura.methods import METHODS
from foura.methods.attach import attach
from foura.methods.method import RESERVED
from foura.methods.peer import UNFIT, config_class, has_rank
from foura.methods.state import adapter_parameters
from foura.run.artifacts import save_adapter
from foura.run.export import export
from foura.run.layers import layer_table
from foura.run.load import load_adapter, read_config
from tests.helpers.config import composed
from tests.helpers.hostile import in_time, refused
from tests.helpers.untrusted import run_folder

SHIPPED = ("rslora", "pissa", "olora", "oft", "c3a", "waveft", "hira", "shira", "miss", "randlora", "loha", "lokr")
FAMILIES = ("vit", "llama_small", "unet")
SMALL = {
    "vit": ("dataset.limit=20",),
    "llama_small": ("dataset.limit=8", "dataset.eval_limit=8"),
    "unet": ("dataset.limit=8", "dataset.eval_limit=8", "dataset.repeats=1"),
}


def peft(peft_type: str, **options: Any) -> list[str]:
    """Overrides for a peer that has no YAML."""
    further = [f"+adapter.options.{name}={value}" for name, value in options.items()]
    return [
        "adapter=lora",
        "adapter.name=peer",
        "adapter.method=peft",
        f"+adapter.options.peft_type={peft_type}",
        *further,
    ]


def made(*overrides: str) -> Any:
    """The PEFT config of a run's config."""
    cfg = composed("rank=4", *overrides)
    check(cfg)
    layers = {"one": nn.Linear(16, 32), "two": nn.Linear(32, 32)}
    return METHODS[cfg.adapter.method].config(cfg, layers, 10, {"target_modules": ["one", "two"]})


def test_rank_alpha_and_dropout_go_where_peft_has_them() -> None:
    """Read from PEFT's classes themselves, so that a field that PEFT adds or renames is noticed."""
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        fields = {spec.name: spec for spec in dataclasses.fields(config)}
        if kind.value in (*UNFIT, "FOURA") or "target_modules" not in fields:
            continue
        extra = {"feedforward_modules": "[]"} if kind.value == "IA3" else {}
        prefix = kind.value.lower()
        dropout = ["adapter.dropout=0.25"] if f"{prefix}_dropout" in fields else []
        found = made(*peft(kind.value, **extra), "alpha=2.0", *dropout)
        assert found.peft_type == kind.value
        for name in fields:
            if name == "r":
                assert found.r == (4 if has_rank(config) else fields["r"].default), kind
            elif name in ("alpha", f"{prefix}_alpha"):
                assert getattr(found, name) == 2.0 * 4, kind
            elif name == f"{prefix}_dropout":
                assert getattr(found, name) == 0.25, kind
            elif name.endswith(("_alpha", "_dropout")):
                assert getattr(found, name) == fields[name].default, (kind, name)


@pytest.mark.parametrize("adapter", ["rslora", "loha", "lokr", "randlora"])
def test_alpha_is_the_scaling_that_it_is_for_lora(adapter) -> None:
    cfg = composed(f"adapter={adapter}", "rank=4", "alpha=0.5", "dataset.limit=20")
    model = attach(build(cfg).backbone, cfg, steps=10)
    scalings = {layer.scaling["default"] for layer in model.modules() if isinstance(layer, BaseTunerLayer)}
    assert scalings == {0.5 * math.sqrt(4) if adapter == "rslora" else 0.5}


@pytest.mark.parametrize("adapter", ["c3a", "waveft", "fourierft", "shira", "hira"])
def test_rank_is_a_budget_of_loras_parameters(adapter) -> None:
    def layers(name: str) -> dict[str, int]:
        cfg = composed(f"adapter={name}", "rank=4", "dataset.limit=20")
        model = attach(build(cfg).backbone, cfg, steps=10)
        return {
            place: sum(p.numel() for p in layer.parameters() if p.requires_grad)
            for place, layer in model.named_modules()
            if isinstance(layer, BaseTunerLayer)
        }

    wanted, found = layers("lora"), layers(adapter)
    assert found.keys() == wanted.keys()
    for place, count in found.items():
        if adapter == "c3a":  # its blocks' sides are divisors
            assert 1 / math.sqrt(2) <= count / wanted[place] <= math.sqrt(2), place
        else:
            assert count == wanted[place], place


def test_a_larger_rank_means_fewer_parameters_for_randlora_alone() -> None:
    def count(rank: int) -> int:
        cfg = composed("adapter=randlora", f"rank={rank}", "dataset.limit=20")
        return sum(p.numel() for p in attach(build(cfg).backbone, cfg, steps=10).parameters() if p.requires_grad)

    assert count(4) > count(16)


@pytest.mark.parametrize(
    ("adapter", "family"),
    [
        pytest.param(adapter, family, marks=pytest.mark.slow if family != "vit" and adapter != "oft" else ())
        for family in FAMILIES
        for adapter in SHIPPED
    ],
)
def test_an_adapter_loads_again_merges_and_is_measured(adapter, family, tmp_path) -> None:
    """On a fresh backbone it gives the same outputs, as the merged model does, and the layer table has merging's ΔW."""
    cfg = composed(f"adapter={adapter}", f"backbone={family}", "rank=4", *SMALL[family])
    check(cfg)
    torch.manual_seed(0)
    parts = build(cfg)
    torch.manual_seed(0)  # the new head starts alike
    fresh = build(cfg).backbone.model
    weights = {name: value.detach().clone() for name, value in fresh.named_parameters()}
    model = attach(parts.backbone, cfg, steps=10)
    task = parts.task(model)
    inputs = task.inputs(next(iter(torch.utils.data.DataLoader(parts.data.train, 4, collate_fn=parts.data.collate))))

    @torch.no_grad()
    def outputs(adapted: nn.Module) -> torch.Tensor:
        found = adapted.eval()(**inputs) if isinstance(inputs, dict) else adapted.eval()(inputs)
        return found if isinstance(found, torch.Tensor) else found.logits

    start = outputs(fresh)
    assert torch.allclose(outputs(model), start, atol=1e-4)  # every one of them starts as the backbone
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    wanted = outputs(model)
    assert not torch.allclose(wanted, start, atol=1e-3)
    save_adapter(task, adapter_parameters(model), tmp_path)
    loaded = load_adapter(fresh, tmp_path, cfg)
    assert torch.allclose(outputs(loaded), wanted, atol=1e-5)
    reduces = METHODS[cfg.adapter.method].changes_weights(cfg.adapter)
    layers = [row["layer"] for row in layer_table(model, task.method, [], {})]
    before = {name: weights[f"{name}.weight"] for name in layers} if reduces else {}
    table = layer_table(model, task.method, [], before)
    merged: Any = loaded.merge_and_unload()
    assert torch.allclose(outputs(merged), wanted, atol=1e-4 * float(wanted.abs().max()))
    for row in table:
        update = merged.get_submodule(row["layer"]).weight - weights[f"{row['layer']}.weight"]
        assert row["delta_norm"] == pytest.approx(float(torch.linalg.matrix_norm(update)), rel=1e-3)
        assert row["rank"] == (None if adapter in ("oft", "c3a", "waveft") else 4)


@pytest.mark.parametrize("adapter", ["pissa", "olora"])
def test_a_start_that_reduces_the_weights_is_exported_whole(adapter, tmp_path) -> None:
    run = run_folder(tmp_path / "run", adapter)
    cfg = read_config(run)
    parts = build(cfg)
    images = torch.rand(4, 1, 16, 16)
    loaded = load_adapter(parts.backbone.model, run, cfg).eval()
    export(run, "merged", tmp_path / "out")
    from safetensors.torch import load_file

    plain = build(cfg).backbone.model
    plain.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    with torch.no_grad():
        assert torch.allclose(plain.eval()(images), loaded(images), atol=1e-5)


MISTAKES = {
    "an unknown type": (peft("OFFT"), "adapter.options.peft_type=OFFT is not known to PEFT. Choose one of LORA, "),
    "a missing type": (
        ["adapter=lora", "adapter.method=peft"],
        "adapter.method=peft needs adapter.options.peft_type, PEFT's name of a method such as OFT",
    ),
    "an option of another method": (
        ["adapter=oft", "+adapter.options.d_initial=0.1"],
        "adapter.options.d_initial: OFTConfig has no such field. Its fields: r, oft_block_size, module_dropout, ",
    ),
    "a type beside a method's own": (
        ["adapter=vera", "+adapter.options.peft_type=OFT"],
        "adapter.options.peft_type is set by the run itself",
    ),
    "a field of the run's": (
        ["adapter=lora", "+adapter.options.target_modules=[fc1]"],
        "adapter.options.target_modules is set by the run itself",
    ),
    "a value that the config refuses": (
        ["adapter=oft", "+adapter.options.r=4"],
        "adapter.options: OFTConfig refuses them (You can only specify either r (4) or oft_block_size (32)",
    ),
    "a value that the layers refuse": (
        peft("ROAD", group_size=24),
        "adapter=peer cannot be put on this backbone's layers (The out_features of the base layer must be divisible",
    ),
    "prompts": (peft("PROMPT_TUNING"), "PromptTuningConfig has no target_modules, so it cannot go on"),
    "tokens": (peft("TRAINABLE_TOKENS"), "peft_type=TRAINABLE_TOKENS trains rows of an embedding, not linear layers"),
    "tasks": (peft("poly"), "peft_type=poly needs the number of a task with every batch"),
    "a rank above the layer": (["adapter=pissa", "rank=500"], "rank 500 is more than layer"),
    "a budget above the layer": (
        ["adapter=shira", "rank=128"],
        "adapter=shira cannot be put on this backbone's layers (The set rank 128 results in more shira params",
    ),
    "a block above the layer": (
        ["adapter=miss", "rank=500"],
        "adapter=miss cannot be put on this backbone's layers (`r` (500) must be less than or equal to in_features",
    ),
    "a dropout that is not there": (
        ["adapter=shira", "adapter.dropout=0.1"],
        "adapter.dropout=0.1: ShiraConfig has no shira_dropout, so adapter=shira would train without it",
    ),
    "a scaling that is not there": (
        ["adapter=loha", "adapter.use_rslora=true"],
        "adapter.use_rslora=True: LoHaConfig has no use_rslora",
    ),
    "another such scaling": (["adapter=adalora", "adapter.use_rslora=true"], "adapter=adalora has no such scaling"),
    "a start that needs data": (
        ["adapter=pissa", "adapter.options.init_lora_weights=lora_ga"],
        "init_lora_weights=lora_ga is not a start that adapter=pissa can repeat when the run is resumed or exported; "
        "choose one of True, False, gaussian, orthogonal, mica, pissa, olora.",
    ),
    "a random start": (["adapter=pissa", "adapter.options.init_lora_weights=pissa_niter_4"], "can repeat"),
    "a start beside SoRA's gates": (["adapter=sora", "+adapter.options.init_lora_weights=pissa"], "True, gaussian."),
    "equal parameters without a rank": (
        ["adapter=oft", "iso_parameters=true"],
        "iso_parameters=true searches for a rank, and the number of parameters of adapter=oft does not grow with rank",
    ),
    "equal parameters of all weights": (
        ["adapter=full", "iso_parameters=true"],
        "adapter=full does not grow with rank",
    ),
    "equal parameters of fewer bases": (["adapter=randlora", "iso_parameters=true"], "adapter=randlora does not grow"),
}


@pytest.fixture(scope="module")
def vit() -> Any:
    return build(composed("dataset.limit=20")).backbone


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_a_sentence(mistake, vit) -> None:
    overrides, words = MISTAKES[mistake]
    cfg = composed(*overrides)
    with pytest.raises(UserError) as error:  # noqa: PT012 (either of them may refuse)
        check(cfg)
        attach(dataclasses.replace(vit, model=copy.deepcopy(vit.model)), cfg, steps=10)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "mistake", ["a missing type", "a budget above the layer"]
)  # known without the model, and with it
def test_a_mistake_ends_the_run_before_training(mistake, train) -> None:
    overrides, words = MISTAKES[mistake]
    ended = train(*overrides, "dataset.limit=20")
    assert str(ended.code).startswith("error: ") and words in str(ended.code), ended.code
    assert "Traceback" not in ended.out and "\n" not in str(ended.code)


def test_the_unknown_type_is_answered_with_all_that_can_be_chosen() -> None:
    with pytest.raises(UserError) as error:
        config_class("EVIL")
    named = str(error.value).split("Choose one of ")[1].rstrip(".").split(", ")
    assert {"OFT", "HRA", "DELORA"} < set(named) and not {"FOURA", *UNFIT} & set(named)


def test_the_fields_of_the_run_are_those_of_every_peft_config() -> None:
    import peft

    base = {spec.name for spec in dataclasses.fields(peft.PeftConfig)}
    assert base <= {*RESERVED}
    assert {*RESERVED} - base == {"target_modules", "modules_to_save"}


@pytest.mark.parametrize("adapter", ["c3a", "miss", "loha", "lokr"])
def test_layers_that_a_peer_does_not_know_are_named(adapter, tmp_path) -> None:
    """GPT-2's are Conv1D, which PEFT adapts with some methods alone."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from foura.bundled.llama import FOLDER

    shape = {"n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=1024, **shape)).save_pretrained(tmp_path / "gpt")
    AutoTokenizer.from_pretrained(FOLDER).save_pretrained(tmp_path / "gpt")
    place = f"backbone.name={tmp_path / 'gpt'}"
    cfg = composed("backbone=llama_small", place, f"adapter={adapter}", "rank=4", *SMALL["llama_small"])
    with pytest.raises(UserError, match=f"adapter={adapter} cannot be put on this backbone's layers .*h.*c_attn"):
        attach(build(cfg).backbone, cfg, steps=10)


@pytest.mark.parametrize("adapter", SHIPPED)
def test_a_run_folder_of_a_peer_is_taken_and_absurd_sizes_are_refused(adapter, tmp_path) -> None:
    run = run_folder(tmp_path / "run", adapter)
    cfg = read_config(run)
    backbone = build(cfg).backbone.model
    path: Path = run / "adapter" / "adapter_config.json"
    described = json.loads(path.read_text())
    assert isinstance(load_adapter(build(cfg).backbone.model, run, cfg), PeftModel)
    sizes = [name for name in ("r", "oft_block_size", "num_cayley_neumann_terms") if name in described]
    sizes += [name for name in ("mini_r", "n_frequency", "block_size") if name in described]
    changes: list[dict[str, Any]] = [{name: size} for name in sizes for size in (10**12, -1, 10**30, "8")]
    for name in ("n_frequency_pattern", "block_size_pattern", "rank_pattern"):
        if name in described:
            changes += [{name: {"qkv": 10**12}}, {name: {"(a+)+$": 3}}]
    assert changes
    for change in changes:
        path.write_text(json.dumps(described | change))
        with in_time():
            assert refused(lambda: load_adapter(backbone, run, cfg)), change


def test_another_start_in_the_file_than_in_the_run_is_refused(tmp_path) -> None:
    run = run_folder(tmp_path / "run", "lora")
    cfg, path = read_config(run), run / "adapter" / "adapter_config.json"
    described = json.loads(path.read_text())
    for start in ("pissa", "pissa_niter_1000000000", "corda"):
        path.write_text(json.dumps(described | {"init_lora_weights": start}))
        with pytest.raises(UserError, match=f"sets init_lora_weights={start}; the run has True"):
            load_adapter(build(cfg).backbone.model, run, cfg)
