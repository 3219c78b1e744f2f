"""Untrusted weights and folders of timm models: refused in one sentence, and nothing in them is executed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from foura.bundled import vit
from foura.families.diffusion.features import feature_space
from foura.families.images.backbone import build_vit
from tests.helpers.hostile import BYTES, damaged, mutated, payload, refused, try_all
from tests.helpers.untrusted import HEADERS, config

FILES, FOLDERS = 800, 140  # examples of make test-all
TIMM = "vit_tiny_patch16_224"


def of_vit(change) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in change(load_file(vit.WEIGHTS)).items()})


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


def test_any_weights_of_the_bundled_vit(tmp_path) -> None:
    path, whole = tmp_path / "weights.safetensors", vit.WEIGHTS.read_bytes()

    def check(content: bytes) -> bool:
        path.write_bytes(content)
        return refused(lambda: build_vit(config("vit", pretrained=str(path)), 10))

    assert not check(whole)
    for content in (*HEADERS, *changed_tensors(), whole[:1000], whole[:-1], whole + b"\x00"):
        assert check(content)
    try_all(BYTES | damaged(whole), check, FILES)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth", "weights.bin", "weights.npz"])
def test_a_file_for_a_timm_model(name, tmp_path) -> None:
    path, mark = tmp_path / name, tmp_path / "executed"
    bad = [*HEADERS, payload(mark), vit.WEIGHTS.read_bytes()]
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


def test_any_timm_folder(tmp_path) -> None:
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
        refused(lambda: feature_space(str(tmp_path)))

    (tmp_path / "config.json").write_text(json.dumps(described))
    assert not refused(lambda: build_vit(config("vit", name=str(tmp_path)), 10))
    assert not refused(lambda: feature_space(str(tmp_path)))
    try_all(mutated(described, likely), check, FOLDERS)
    (tmp_path / "config.json").write_text(json.dumps(described))
    whole = load_file(tmp_path / "model.safetensors")
    save_file({name: whole[name] for name in whole if "blocks.3" not in name}, tmp_path / "model.safetensors")
    assert refused(lambda: feature_space(str(tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(payload(mark))
    assert refused(lambda: build_vit(config("vit", name=str(tmp_path)), 10))
    assert refused(lambda: feature_space(str(tmp_path))) and not mark.exists()
