"""Training on a folder of one's own images, on the bundled model and on timm's."""

import csv
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from foura.families.images.backbone import build_vit
from foura.run.export import export
from tests.helpers.runs import status


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of two classes that can be told apart."""
    for label, shade in (("dark", 30), ("light", 220)):
        for index in range(20):
            place = tmp_path / "images" / label
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 20), (shade, shade - index, shade)).save(place / f"{index}.png")
    return tmp_path / "images"


def test_own_images_and_another_timm_model(train, images) -> None:
    ended = train("dataset=imagefolder", f"dataset.path={images}", "rank=4", "trainer.max_epochs=4")
    assert ended.code == 0
    assert status(ended)["metrics"]["test/acc"] == 1.0


def test_a_checkpoint_file_goes_through_timms_loading(train, images, tmp_path) -> None:
    model = timm.create_model("test_vit", num_classes=7)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    ended = train(
        *("dataset=imagefolder", f"dataset.path={images}", "backbone.name=test_vit", "backbone.img_size=32"),
        *(f"backbone.pretrained={tmp_path / 'weights.safetensors'}", "rank=4", "trainer.max_epochs=1", "adapter=foura"),
    )
    assert ended.code == 0, ended.out
    rebuilt = build_vit(OmegaConf.load(ended.folder() / "config.yaml").backbone, 2).model
    assert torch.equal(rebuilt.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert rebuilt.head.weight.shape[0] == 2


def test_frozen_batch_norms_do_not_move(train, images) -> None:
    command = (
        "dataset=imagefolder",
        f"dataset.path={images}",
        "backbone.name=test_efficientnet",
        "trainer.max_epochs=1",
    )
    ended = train(*command, "backbone.pretrained=false", "adapter=head", "backbone.img_size=32")
    assert ended.code == 0, ended.out
    state = load_file(ended.folder() / "adapter" / "model.safetensors")
    counts = [int(value) for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert counts
    assert set(counts) == {0}


def test_an_unreadable_image_ends_in_one_sentence(train, images) -> None:
    (images / "dark" / "3.png").write_bytes(b"no image")
    ended = train("dataset=imagefolder", f"dataset.path={images}")
    assert "dark/3.png cannot be read as an image" in ended.code
    assert status(ended)["state"] == "failed"


def test_an_image_that_a_worker_cannot_read_is_said_in_one_sentence(train, images, monkeypatch) -> None:
    """Images of more than the memory for them are read in training; this one was there before it."""
    from foura.families.images import data

    monkeypatch.setattr(data, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(data, "_read_once", lambda lazy: (images / "dark" / "3.png").write_bytes(b"no image"))
    ended = train("dataset=imagefolder", f"dataset.path={images}", "trainer.max_epochs=1", "dataset.num_workers=1")
    assert "dark/3.png cannot be read as an image" in str(ended.code), ended.out
    assert "Traceback" not in str(ended.code)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2_035", "test_coatnet"])
def test_a_convolutional_model_trains_and_exports(name, train, images, tmp_path) -> None:
    torch.save(timm.create_model(name).state_dict(), tmp_path / "start.pt")
    ended = train(
        *("dataset=imagefolder", f"dataset.path={images}", f"backbone.name={name}", "backbone.img_size=64"),
        *(f"backbone.pretrained={tmp_path / 'start.pt'}", "adapter=foura", "rank=4", "trainer.max_epochs=2"),
    )
    assert ended.code == 0, ended.out
    assert "linear layers and convolutions, " in " ".join(ended.out.split())
    rows = list(csv.DictReader((ended.folder() / "layers.csv").open()))
    assert len(rows) > 18 and all(float(row["delta_norm"]) > 0 and row["stable_rank"] for row in rows)
    assert "agree with the adapted model's" in export(ended.folder(), "merged", tmp_path / "merged", freeze=True)
