"""Untrusted folders of language models and pipelines: refused in one sentence, and nothing in them is executed."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from foura.bundled.llama import FOLDER
from foura.families.diffusion.backbone import build_unet
from foura.families.language.backbone import build_llama
from tests.helpers.hostile import mutated, payload, refused, try_all
from tests.helpers.untrusted import HEADERS, config

FOLDERS, PARTS = 300, 40  # examples of make test-all
LIKELY_LAYERS = [0, -1, 10**9, [1, 10**9], "4", None, 2.5, True]


@pytest.fixture
def llama(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "llama"))


def remote_code(folder: Path) -> Path:
    mark = folder / "executed"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    return mark


AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_any_folder_of_a_language_model(part, llama) -> None:
    mark, path = remote_code(llama), llama / part
    described = json.loads(path.read_text())
    likely = {
        "auto_map": [AUTO_MAP],
        "model_type": ["evil", "bert", "../x"],
        "num_hidden_layers": LIKELY_LAYERS,
        "vocab_size": [3, 10**12, -1],
        "hidden_act": ["os.system"],
        "attn_implementation": ["evil/kernel"],
        "_attn_implementation": ["evil/kernel"],
        "quantization_config": [{"quant_method": "gptq"}, {"quant_method": "evil"}, 3],
        "tokenizer_class": ["TransfoXLTokenizer", "EvilTokenizer", "PreTrainedTokenizer"],
        "eos_token": [None, "</s>", {"__type": "AddedToken", "content": 3}],
        "pad_token": [None, "x"],
        "model": [
            {},
            {"type": "BPE", "vocab": {"a": 10**6}, "merges": []},
            {"type": "WordLevel", "vocab": {}, "unk_token": "x"},
        ],
        "pre_tokenizer": [
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
            None,
        ],
    }

    def check(changed: dict) -> None:
        path.write_text(json.dumps(changed))
        refused(lambda: build_llama(config("llama_small", name=str(llama))))
        refused(lambda: build_llama(config("llama_small", name=str(llama), pretrained=False)))

    names = set(described) | ({"auto_map", "tokenizer_class"} if part != "config.json" else set(likely))
    some = {name: values for name, values in likely.items() if name in names}
    for name, values in some.items():
        for value in values:
            check({**described, name: value})
    try_all(mutated(described, some), check, FOLDERS)
    assert not mark.exists()


def test_weights_of_a_language_model(llama) -> None:
    def built() -> bool:
        return refused(lambda: build_llama(config("llama_small", name=str(llama))))

    path, mark = llama / "model.safetensors", llama / "executed"
    whole = path.read_bytes()
    state = load_file(path)
    assert not built()
    for content in (*HEADERS, whole[:1000], whole[:-1]):
        path.write_bytes(content)
        assert built()
    save_file({name: value for name, value in state.items() if ".2." not in name}, path, metadata={"format": "pt"})
    assert built()  # a layer would be left at random
    path.unlink()
    (llama / "pytorch_model.bin").write_bytes(payload(mark))
    assert built() and not mark.exists()
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, "../../x")}))
    assert built()
    path.write_bytes(whole)
    (llama / "model.safetensors.index.json").unlink()
    (llama / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../../x"}))
    assert built()  # transformers would load the other model instead, and the adapter on it


def test_any_folder_of_a_pipeline(tmp_path) -> None:
    from tests.peers.tiny_models import stable_diffusion

    stable_diffusion(tmp_path / "pipe")
    folder, mark = tmp_path / "pipe", remote_code(tmp_path / "pipe")

    def built() -> bool:
        return refused(lambda: build_unet(config("unet", name=str(folder))))

    assert not built()
    likely = {
        "unet/config.json": {
            "sample_size": [None, [8, 8], 0, 10**6, "8"],
            "layers_per_block": LIKELY_LAYERS,
            "transformer_layers_per_block": LIKELY_LAYERS,
            "in_channels": [5],
            "act_fn": ["os.system"],
            "_class_name": ["Evil"],
            "auto_map": [AUTO_MAP],
        },
        "vae/config.json": {
            "scaling_factor": ["x", 0, None],
            "latent_channels": [5],
            "layers_per_block": LIKELY_LAYERS,
        },
        "scheduler/scheduler_config.json": {
            "num_train_timesteps": [0, 10**12, "x"],
            "prediction_type": ["evil"],
            "beta_schedule": ["evil"],
            "trained_betas": ["x", [], [[1]]],
        },
        "text_encoder/config.json": {"hidden_size": [64], "num_hidden_layers": LIKELY_LAYERS, "auto_map": [AUTO_MAP]},
        "tokenizer/tokenizer_config.json": {"model_max_length": [10**30, -1, "x"], "pad_token": [None]},
    }
    for part, values in likely.items():
        path, text = folder / part, (folder / part).read_text()
        described = json.loads(text)

        def check(changed: dict, path: Path = path) -> None:
            path.write_text(json.dumps(changed))
            built()

        for name, some in values.items():
            for value in some:
                check({**described, name: value})
        try_all(mutated(described, values), check, PARTS)
        path.write_text(text)
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        path = folder / f"{part}.safetensors"
        whole = path.read_bytes()
        for content in (*HEADERS[2:5], b"", whole[:1000], whole[:-1]):
            path.write_bytes(content)
            assert built()
        path.unlink()
        pickled = folder / f"{part.replace('text_encoder/model', 'text_encoder/pytorch_model')}.bin"
        pickled.write_bytes(payload(mark))
        assert built()
        pickled.unlink()
        path.write_bytes(whole)
    assert not built() and not mark.exists()
