"""The bundled UNet, and a folder of images with captions."""

import pytest
from omegaconf import OmegaConf
from PIL import Image

from foura.families.diffusion.backbone import build_unet
from foura.schema import BackboneConfig
from tests.helpers.captioned import write_captions


@pytest.fixture(scope="module")
def unet():
    return build_unet(OmegaConf.structured(BackboneConfig(family="unet")))


@pytest.fixture
def folder(tmp_path):
    """Twelve images with captions, each of one shade."""
    place = tmp_path / "images"
    place.mkdir()
    for index in range(12):
        Image.new("RGB", (20, 30), (20 * index, 0, 0)).save(place / f"{index:02d}.png")
    write_captions(place, range(12))
    return place
