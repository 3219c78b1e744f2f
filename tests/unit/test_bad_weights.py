"""Weights and models' folders that nobody should trust: refused in one sentence, nothing of them is executed."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from foura.backbones import llama_embedded, vit_embedded
from foura.backbones.llama import build_llama
from foura.backbones.unet import build_unet
from foura.backbones.vit import build_vit
from foura.schema import BackboneConfig
from tests.hostile import BYTES, TIMES, damaged, mutated, payload, refused, try_all

FILES, FOLDERS = 40, 15  # examples tried
TIMM = "vit_tiny_patch16_224"
LIKELY_LAYERS = [0, -1, 10**9, [1, 10**9], "4", None, 2.5, True]


def config(family: str, **fields):
    return OmegaConf.structured(BackboneConfig(family=family, **fields))


def header(content: object, length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(shape: list, dtype: str = "F32", where: tuple = (0, 4)) -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": list(where)}}


HEADERS = [
    b"",
    b"\xff" * 8,
    header({}, 2**63 - 1),
    header({}, 10**8 + 1),
    header(tensor([1], where=(0, 2**62))) + bytes(4),
    header(tensor([2**40, 2**40])) + bytes(4),
    header(tensor([-1])) + bytes(4),
    header(tensor([1], "F8_E8M0", (0, 1))) + bytes(1),
    header(tensor([1], "EVIL")) + bytes(4),
    header(tensor([1])) + bytes(4),
    header({"__metadata__": {"a": {"b": 1}}}),
    header([[]] * 10),
    header({"../../x": tensor([1])["x"]}) + bytes(4),
    struct.pack("<Q", 100_000) + b"[" * 100_000,
]


def of_vit(change) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in change(load_file(vit_embedded.WEIGHTS)).items()})


def changed_tensors() -> list[bytes]:
    name = "blocks.0.attn.qkv.weight"
    return [
        of_vit(lambda state: {key: value for key, value in state.items() if key != name}),
        of_vit(lambda state: {**state, "further": torch.ones(2)}),
        of_vit(lambda state: {**state, name: state[name][:5]}),
        of_vit(lambda state: {**state, name: torch.ones(state[name].shape, dtype=torch.int64)}),
        of_vit(lambda state: {**state, name: torch.ones(state[name].shape, dtype=torch.complex64)}),
        of_vit(lambda state: {f"module.{key}": value for key, value in state.items()}),
        of_vit(lambda state: {}),
    ]


@TIMES
def test_any_weights_of_the_embedded_vit(times, tmp_path) -> None:
    path, whole = tmp_path / "weights.safetensors", vit_embedded.WEIGHTS.read_bytes()

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        return refused(lambda: build_vit(config("vit", pretrained=str(path)), 10))

    assert not check(whole)
    for content in (*HEADERS, *changed_tensors(), whole[:1000], whole[:-1], whole + b"\x00"):
        assert check(content)
    try_all(BYTES | damaged(whole), check, FILES * times)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth", "weights.bin", "weights.npz"])
def test_a_file_for_a_timm_model(name, tmp_path) -> None:
    path, mark = tmp_path / name, tmp_path / "executed"
    bad = [*HEADERS, payload(mark), vit_embedded.WEIGHTS.read_bytes()]
    zipped = tmp_path / "zipped"
    for saved in ({"head.weight": torch.ones(1)}, [torch.ones(1)], {"state_dict": 3}, {}):
        torch.save(saved, zipped)
        bad.append(zipped.read_bytes())
    for content in bad:
        path.write_bytes(content)
        assert refused(lambda: build_vit(config("vit", name=TIMM, pretrained=str(path)), 10))
    assert not mark.exists()


def test_the_right_weights_are_still_taken(tmp_path) -> None:
    import timm

    model = timm.create_model(TIMM, num_classes=7)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        built = build_vit(config("vit", name=TIMM, pretrained=str(tmp_path / name)), 10).model
        assert torch.equal(
            built.get_parameter("blocks.3.mlp.fc1.weight"), model.get_parameter("blocks.3.mlp.fc1.weight")
        )


@TIMES
def test_any_timm_folder(times, tmp_path) -> None:
    import timm

    mark = tmp_path / "executed"
    save_file(timm.create_model(TIMM, num_classes=7).state_dict(), tmp_path / "model.safetensors")
    described = {
        "architecture": TIMM,
        "num_classes": 7,
        "model_args": {},
        "pretrained_cfg": {"input_size": [3, 224, 224], "classifier": "head"},
    }
    likely = {
        "architecture": ["../../x", "os.system", "resnet18", "hf-hub:x/y", None],
        "model_args": [
            {"depth": 2},
            {"act_layer": "os.system"},
            {"img_size": -1},
            {"depth": "x"},
            {"embed_dim": 0},
            {"x": 1},
        ],
        "pretrained_cfg": [
            {"custom_load": "hf"},
            {"file": "/etc/passwd"},
            {"url": "http://127.0.0.1:9/x"},
            {"classifier": None},
        ],
    }

    def check(changed: dict) -> None:
        (tmp_path / "config.json").write_text(json.dumps(changed))
        refused(lambda: build_vit(config("vit", name=str(tmp_path)), 10))

    (tmp_path / "config.json").write_text(json.dumps(described))
    assert not refused(lambda: build_vit(config("vit", name=str(tmp_path)), 10))
    try_all(mutated(described, likely), check, FOLDERS // 2 * times)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(payload(mark))
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert refused(lambda: build_vit(config("vit", name=str(tmp_path)), 10)) and not mark.exists()


@pytest.fixture
def llama(tmp_path) -> Path:
    return Path(shutil.copytree(llama_embedded.FOLDER, tmp_path / "llama"))


def remote_code(folder: Path) -> Path:
    mark = folder / "executed"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    return mark


AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}


@TIMES
@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_any_folder_of_a_language_model(part, times, llama) -> None:
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
    try_all(mutated(described, some), check, FOLDERS * times)
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


@TIMES
def test_any_folder_of_a_pipeline(times, tmp_path) -> None:
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
        try_all(mutated(described, values), check, FOLDERS // 5 * times)
        path.write_text(text)
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        path = folder / f"{part}.safetensors"
        whole = path.read_bytes()
        for content in (*HEADERS, whole[:1000], whole[:-1]):
            path.write_bytes(content)
            assert built()
        path.unlink()
        pickled = folder / f"{part.replace('text_encoder/model', 'text_encoder/pytorch_model')}.bin"
        pickled.write_bytes(payload(mark))
        assert built()
        pickled.unlink()
        path.write_bytes(whole)
    assert not built() and not mark.exists()
