"""Exports by the rules of programs that read one rank and one alpha: llama.cpp's converter, vLLM's PEFTHelper, SGLang.

Each rule is written here as the program applies it to the files, and computes ΔW from them.
"""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import foura
from foura import FouraConfig
from tests.helpers.tiny_models import tiny_llama

TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj", "embed_tokens"]
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
KINDS = {
    "rank_pattern": {
        "rank_pattern": {"q_proj": 3, "model.layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"v_proj": 1.0},
    },
    "frozen": {"gate": "frozen"},
    "dft": {"transform": "dft", "rank_pattern": {"k_proj": 2}},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def adapted(kind: str, **fields) -> PeftModel:
    settings = {"r": 4, "foura_alpha": 6, "target_modules": TARGETS, "init_weights": False, "task_type": "CAUSAL_LM"}
    model = get_peft_model(tiny_llama(), FouraConfig(**{**settings, **KINDS[kind], **fields})).eval()
    if kind == "frozen":
        for number, layer in enumerate(foura.adapter.freeze.foura_layers(model).values()):
            layer.foura_gate_mask["default"] = torch.arange(4) < number % 4  # one layer is closed altogether
    return model


def deltas(model: PeftModel) -> dict[str, Tensor]:
    """{weight: ΔW} of the adapter, as the base model names its weights."""
    layers = foura.adapter.freeze.foura_layers(model)
    return {f"{name}.weight": layer.get_delta_weight("default").detach() for name, layer in layers.items()}


def llama_cpp(folder: Path) -> dict[str, Tensor]:
    """convert_lora_to_gguf.py and llama-adapter.cpp: one alpha for the file, divided by the rank of each tensor."""
    alpha = float(json.loads((folder / "adapter_config.json").read_text())["lora_alpha"])
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        if ".base_layer.weight" in name:
            continue
        side = "A" if ".lora_A.weight" in name or ".lora_embedding_A" in name else "B"
        base = name.replace("base_model.model.", "")
        for ending in (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B"):
            base = base.replace(ending, ".weight")
        assert base != name.replace("base_model.model.", ""), f"{name}: not a lora_A or lora_B tensor"
        halves.setdefault(base, {})[side] = tensor
    found = {name: alpha / len(half["A"]) * half["B"] @ half["A"] for name, half in halves.items()}
    return {name: delta.T if "embed_tokens" in name else delta for name, delta in found.items()}


def vllm(folder: Path, max_lora_rank: int) -> dict[str, Tensor]:
    """vLLM's PEFTHelper and LoRAModel: one scaling, lora_alpha / r, and ranks up to --max-lora-rank."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert max_lora_rank in VLLM_RANKS and config["r"] <= max_lora_rank
    assert not config["modules_to_save"] and not config["use_dora"] and not config["use_rslora"]
    assert config["bias"] == "none" and isinstance(config["target_modules"], list)
    scaling, halves = config["lora_alpha"] / config["r"], {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        assert name.startswith("base_model.model.")
        if name.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")):
            continue
        parts = name.split(".")
        kept = 2 if parts[-1] == "weight" else 1
        assert parts[-2] in ("lora_A", "lora_B") if kept == 2 else parts[-1] in ("lora_embedding_A", "lora_embedding_B")
        halves.setdefault(".".join(parts[2:-kept]), {})[parts[-kept][-1]] = tensor
    assert all(half["A"].shape[0] <= max_lora_rank and half["B"].shape[1] <= max_lora_rank for half in halves.values())
    found = {f"{name}.weight": scaling * half["B"] @ half["A"] for name, half in halves.items()}
    return {name: delta.T if "embed_tokens" in name else delta for name, delta in found.items()}


def sglang(folder: Path) -> None:
    """SGLang stacks q, k and v: they must have one rank."""
    ranks: dict[str, set[int]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        if match := re.match(r"(.*)\.[qkv]_proj\.lora_A", name):
            ranks.setdefault(match[1], set()).add(len(tensor))
    assert len(ranks) == 2 and all(len(found) == 1 for found in ranks.values())


def assert_same(found: dict[str, Tensor], model: PeftModel) -> None:
    expected = deltas(model)
    assert found.keys() == expected.keys() and found.keys() <= tiny_llama().state_dict().keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, rtol=0, atol=1e-5)
    assert max(delta.abs().max() for delta in expected.values()) > 0.1


@every_kind
def test_an_export_follows_every_program_s_rule(kind, tmp_path) -> None:
    model = adapted(kind)
    said = foura.save_as_lora(model, tmp_path)
    largest = {"rank_pattern": 6, "frozen": 3, "dft": 8}[kind]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (largest, largest)
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert_same(llama_cpp(tmp_path), model)
    assert_same(vllm(tmp_path, 8), model)
    sglang(tmp_path)
    assert f"rank {largest}" in said and "--max-lora-rank 8" in said and "llama.cpp" in said


@pytest.mark.parametrize(
    ("rank", "transform", "served"),
    [(8, "dct", 8), (9, "dct", 16), (16, "dft", 32), (200, "dct", 256), (257, "dft", None)],
)
def test_the_message_says_the_rank_that_vllm_needs(rank, transform, served, tmp_path) -> None:
    fields = {"target_modules": ["0"], "transform": transform, "init_weights": False}
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), FouraConfig(r=rank, **fields))
    said = foura.save_as_lora(model, tmp_path)
    wanted = "not for vLLM, whose ranks end at 512" if served is None else f"vLLM (--max-lora-rank {served})"
    assert wanted in said


@every_kind
def test_the_smaller_file_is_for_peft_alone_and_says_so(kind, tmp_path) -> None:
    model, ids = adapted(kind), torch.arange(12)[None]
    said = foura.save_as_lora(model, tmp_path / "small", per_layer_ranks=True)
    foura.save_as_lora(model, tmp_path / "even")
    sizes = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("small", "even")]
    assert sizes[0] < sizes[1]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        for name in ("small", "even"):
            lora = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / name)).eval()
            torch.testing.assert_close(lora(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert "llama.cpp and SGLang need one rank" in said and "--max-lora-rank" not in said
    with pytest.raises(AssertionError, match="not close"):  # the default is there for a reason
        assert_same(llama_cpp(tmp_path / "small"), model)


def test_what_servers_refuse_is_said(tmp_path) -> None:
    said = foura.save_as_lora(adapted("frozen", modules_to_save=["lm_head"]), tmp_path)
    assert "servers refuse what it trains beside the LoRA, such as base_model.model.lm_head.weight" in said


# -- tensors that share memory, as PEFT's save_pretrained writes them


@pytest.mark.parametrize("tied", [True, False])
def test_saved_embeddings_are_written_as_peft_writes_them(tied, tmp_path) -> None:
    model = get_peft_model(tied_llama(tied), FouraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
    model.save_pretrained(str(tmp_path / "foura"))
    foura.save_as_lora(model, tmp_path / "lora")
    assert_same_beside_the_adapter(tmp_path, {"base_model.model.model.embed_tokens.weight"})


def test_resized_embeddings_are_written_as_peft_writes_them(tmp_path) -> None:
    tied_llama(True).save_pretrained(str(tmp_path / "base"))
    base = type(tied_llama(True)).from_pretrained(str(tmp_path / "base"))
    base.resize_token_embeddings(70)
    model = get_peft_model(base, FouraConfig(target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "foura"))
    foura.save_as_lora(model, tmp_path / "lora")
    names = {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"}
    assert_same_beside_the_adapter(tmp_path, names)


def assert_same_beside_the_adapter(folder: Path, names: set[str]) -> None:
    ours, lora = (load_file(folder / name / "adapter_model.safetensors") for name in ("foura", "lora"))
    others = {name for name in ours if ".foura_" not in name}
    assert others == {name for name in lora if ".lora_" not in name} == names
    assert all(torch.equal(ours[name], lora[name]) for name in names)


# -- tied weights


def tied_llama(tied: bool = True) -> nn.Module:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = copy.deepcopy(tiny_llama().config)
    config.tie_word_embeddings = tied
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_merging_a_tied_weight_unties_it(targets, tmp_path) -> None:
    model = get_peft_model(tied_llama(), FouraConfig(r=4, target_modules=targets, init_weights=False)).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected, bare = model(input_ids=ids).logits, tied_llama()(input_ids=ids).logits
        assert not torch.allclose(expected, bare, atol=0.1)
        model.merge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        model.unmerge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        merged.save_pretrained(str(tmp_path))
        loaded = type(merged).from_pretrained(str(tmp_path))
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_merge_that_changes_no_tied_weight_leaves_them_tied() -> None:
    model = get_peft_model(tied_llama(), FouraConfig(r=4, target_modules=["q_proj"], init_weights=False))
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight and merged.config.tie_word_embeddings
