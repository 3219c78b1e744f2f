"""Model folders of other people: nothing outside is read, no number fills the memory, and real models are taken."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st

from foura.bundled.encoder import FOLDER as BERT
from foura.bundled.llama import FOLDER
from foura.errors import UserError
from foura.families.language.backbone import build_llama
from foura.families.model_files import check_folder, check_model, check_numbers, check_parameters, model_folder
from tests.helpers.hostile import in_time, is_a_sentence, try_all
from tests.helpers.untrusted import config

CONFIGS = 300  # examples of make test-all

# the numbers that size memory in public models' configs, the largest of each family
REAL = {
    "Llama-3.1-405B": {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "vocab_size": 128256,
        "eos_token_id": [128001, 128008, 128009],
        "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192},
    },
    "DeepSeek-V3": {
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_hidden_layers": 61,
        "max_position_embeddings": 163840,
        "q_lora_rank": 1536,
        "vocab_size": 129280,
        "quantization_config": {"weight_block_size": [128, 128]},
    },
    "Kimi-K2": {"n_routed_experts": 384, "num_hidden_layers": 61, "vocab_size": 163840, "rope_theta": 50000.0},
    "Switch-c-2048": {"num_experts": 2048, "d_model": 2080, "d_ff": 6144, "vocab_size": 32128},
    "Llama-4-Scout": {"text_config": {"max_position_embeddings": 10485760, "vocab_size": 202048}},
    "MiniMax-Text-01": {"max_position_embeddings": 10240000, "rope_theta": 10000000, "num_local_experts": 32},
    "Gemma-3-27B": {"text_config": {"hidden_size": 5376}, "vision_config": {"image_size": 896}, "vocab_size": 262208},
    "mT5-XXL": {"vocab_size": 250112, "d_ff": 10240, "relative_attention_max_distance": 128},
    "GPT-3 sized": {"n_embd": 12288, "n_layer": 96, "n_positions": 2048, "n_ctx": 2048},
    "ImageNet-21k": {"num_labels": 21843, "num_classes": 21843, "id2label": {str(n): "x" for n in range(21843)}},
    "Nemotron-H": {"time_step_limit": [0.0, float("inf")], "mamba_num_heads": 256},
    "a tokenizer": {"model_max_length": 1000000000000000019884624838656},
    "SDXL": {
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    },
    "SDXL VAE": {"block_out_channels": [128, 256, 512, 512], "sample_size": 1024, "scaling_factor": 0.13025},
    "FLUX.1": {"num_layers": 19, "num_single_layers": 38, "joint_attention_dim": 4096, "pooled_projection_dim": 768},
    "a scheduler": {"num_train_timesteps": 1000, "max_image_seq_len": 4096, "base_image_seq_len": 256},
}


@pytest.mark.parametrize("name", REAL)
def test_the_numbers_of_public_models_are_taken(name) -> None:
    check_numbers(REAL[name], name, config("llama_small"))
    check_numbers(REAL[name], name, None)


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_labels")
SIZES += ("type_vocab_size", "max_position_embeddings", "n_embd", "n_positions", "d_model", "num_classes", "image_size")
SIZES += ("num_channels", "sample_size", "cross_attention_dim", "layers_per_block", "block_out_channels", "in_channels")
SIZES += ("num_train_timesteps", "n_routed_experts", "num_local_experts", "embed_dim", "depth", "img_size", "extra_ids")


@pytest.mark.parametrize("value", [10**8, 10**12, 1e9, [64, 10**9], {"inner": 10**10}, 10**400])
@pytest.mark.parametrize("key", SIZES)
def test_every_number_that_sizes_memory_is_bounded(key, value) -> None:
    for described in ({key: value}, {"text_config": {key: value}}, {"parts": [{key: value}]}):
        with pytest.raises(UserError, match=r"backbone.any_size=true takes it"):
            check_numbers(described, "x", config("llama_small"))
        check_numbers(described, "x", config("llama_small", any_size=True))


def test_any_config_is_checked_or_refused_in_a_sentence() -> None:
    numbers = st.integers() | st.floats() | st.sampled_from([10**9, 10**400, -1, 1e308, float("nan")])
    inner = st.recursive(
        numbers | st.text(max_size=5),
        lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=9), s, max_size=3),
    )

    def check(described: dict) -> None:
        sized = [value for key, value in described.items() if key in SIZES and isinstance(value, int | float)]
        beyond = any(10**9 <= value < float("inf") and value == int(value) for value in sized)
        try:
            check_numbers(described, "x", config("llama_small"))
        except UserError as error:
            is_a_sentence(str(error))
        else:
            assert not beyond

    try_all(st.dictionaries(st.sampled_from(SIZES) | st.text(max_size=9), inner, max_size=4), check, CONFIGS)
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(UserError, match="nested deeper"):
        check_numbers(deep, "x", None)


HEAVY = """
import json, resource, sys
from pathlib import Path
import transformers, foura.families.encoder.backbone, foura.families.language.backbone
from foura.errors import UserError
from foura.families.encoder.backbone import build_encoder
from foura.families.language.backbone import build_llama
from tests.helpers.untrusted import config
kind, folder = sys.argv[1], Path(sys.argv[2])
path = folder / "config.json"
described = json.loads(path.read_text())
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + 3 * 2**29, before + 3 * 2**29))
for changed in json.loads(sys.argv[3]):
    path.write_text(json.dumps({**described, **changed}))
    for pretrained in (True,):
        cfg = config(kind, name=str(folder), pretrained=pretrained)
        try:
            build_llama(cfg) if kind == "llama_small" else build_encoder(cfg, ["a", "b"])
        except UserError as error:
            assert "memory" not in str(error), error
            print("refused", json.dumps(changed), flush=True)
"""
ATTACKS = [
    {"num_labels": 10**8},
    {"vocab_size": 10**9},
    {"vocab_size": 2 * 10**6, "hidden_size": 2**20},
    {"intermediate_size": 2 * 10**6},
    {"max_position_embeddings": 10**9},
    {"hidden_size": 2**20},
    {"num_hidden_layers": 10**9},
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "source"), [("llama_small", FOLDER), ("bert", BERT)])
def test_no_config_of_a_model_fills_the_memory(kind, source, tmp_path, run_env) -> None:
    """In a process that may take 1.5 GB more than the libraries have."""
    folder = shutil.copytree(source, tmp_path / "model")
    attacks = [*ATTACKS, *([{"type_vocab_size": 10**8}, {"max_position_embeddings": 2**24}] if kind == "bert" else [])]
    command = [sys.executable, "-c", HEAVY, kind, str(folder), json.dumps(attacks)]
    ended = subprocess.run(command, env=run_env, capture_output=True, text=True, check=False, timeout=500)
    assert ended.stdout.count("refused") == len(attacks), ended.stdout + ended.stderr[-2000:]


@pytest.fixture
def llama(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "llama"))


def test_a_model_has_no_more_parameters_than_its_weights_can_hold(llama) -> None:
    import torch

    cfg = config("llama_small", name=str(llama))
    check_parameters(lambda: torch.nn.Linear(1000, 1000), llama, cfg)
    with pytest.raises(UserError, match="which cannot hold them"):
        check_parameters(lambda: torch.nn.Linear(10**6, 10**6), llama, cfg)
    check_parameters(lambda: torch.nn.Linear(10**6, 10**6), llama, config("llama_small", name="x", any_size=True))


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "", 3, None, "..", "\0"])
def test_an_index_names_weights_beside_it_alone(shard, llama) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": shard}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="are not files beside it"):
        check_model(str(llama), config("llama_small"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "extra.txt"])
def test_a_link_out_of_a_model_needs_a_key(name, llama, tmp_path) -> None:
    if (llama / name).exists():
        shutil.move(llama / name, tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").write_text("x")
    (llama / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"backbone.links=true"):
        build_llama(config("llama_small", name=str(llama)))
    build_llama(config("llama_small", name=str(llama), links=True))


def test_a_model_in_a_hub_cache_is_taken(llama, tmp_path) -> None:
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(llama.iterdir())):
        shutil.move(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    build_llama(config("llama_small", name=str(snapshot)))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "merges.txt", "sub/config.json", "chat_template.jinja"]
)
def test_a_pipe_or_a_file_of_no_real_size_does_not_hang(name, llama) -> None:
    path = llama / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with in_time(60), pytest.raises(UserError, match="is not a file that can be read"):
        build_llama(config("llama_small", name=str(llama)))
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(3 * 2**30)
    with in_time(60), pytest.raises(UserError, match="has 3 GB"):
        build_llama(config("llama_small", name=str(llama)))


@pytest.mark.parametrize("table", ["/////w==", "AAAAAAAA", "AQAAAA==", "", "no base64", "CAAAAAAAAAA="])
def test_a_table_of_characters_has_the_size_that_it_says(table, llama) -> None:
    """The library reserves as many bytes as it says, up to 8 GB, and ends the process where there are not so many."""
    path = llama / "tokenizer.json"
    described = json.loads(path.read_text())
    one = {"type": "Precompiled", "precompiled_charsmap": table}
    path.write_text(json.dumps({**described, "normalizer": {"type": "Sequence", "normalizers": [one]}}))
    with pytest.raises(UserError, match="precompiled_charsmap that is damaged"):
        build_llama(config("llama_small", name=str(llama)))


def test_a_table_of_characters_of_the_right_size_is_left_to_the_library(llama) -> None:
    path = llama / "tokenizer.json"
    described = json.loads(path.read_text())
    one = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\4\0\0\0" + bytes(4) + b"x\0").decode()}
    path.write_text(json.dumps({**described, "normalizer": one}))
    check_folder(model_folder(llama, None))


@pytest.mark.slow
def test_the_end_of_a_library_in_rust_is_a_sentence(llama, train) -> None:
    """tokenizers panics, which is no Exception, on a template that names a token that is not there."""
    path = llama / "tokenizer.json"
    described = json.loads(path.read_text())
    template = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    template["single"] = [{"SpecialToken": {"id": "x", "type_id": 0}}]
    path.write_text(json.dumps({**described, "post_processor": template}))
    ended = train("backbone=llama_small", "adapter=lora", "rank=4", "dataset.limit=20", f"backbone.name={llama}")
    is_a_sentence(str(ended.code))
    assert "a file of the model, such as its tokenizer.json, is damaged" in ended.code
    assert json.loads((ended.folder() / "status.json").read_text())["state"] == "failed"


def test_the_bundled_models_and_those_in_subfolders_are_taken(llama) -> None:
    check_folder(model_folder(llama, config("llama_small")))
    check_folder(model_folder(BERT, None))
