"""A flipped bit in weights is still a number: checksums tell, for bundled backbones and for the adapters of runs."""

import random
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from foura.errors import UserError
from foura.families.diffusion import backbone as unet
from foura.families.images import backbone as vit
from foura.families.language import backbone as llama
from foura.files import read_weights, write_checksum
from foura.schema import BackboneConfig
from tests.helpers.survives import record

FLIPS = 20


def damaged(path: Path, seed: int) -> None:
    """One bit of the file is another."""
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1 << seed % 8
    path.write_bytes(content)


@pytest.mark.parametrize("family", ["vit", "llama_small", "unet"])
def test_damaged_weights_of_a_bundled_backbone_are_refused(family, tmp_path, monkeypatch) -> None:
    cfg = OmegaConf.structured(BackboneConfig(family=family))
    if family == "vit":
        path = tmp_path / vit.WEIGHTS.name
        for name in (path.name, f"{path.name}.sha256"):
            shutil.copy(vit.WEIGHTS.with_name(name), tmp_path)
        monkeypatch.setattr(vit, "WEIGHTS", path)
    else:
        module = llama if family == "llama_small" else unet
        shutil.copytree(module.FOLDER, tmp_path / "weights")
        path = tmp_path / "weights" / "model.safetensors"
        monkeypatch.setattr(module, "FOLDER", path.parent)
    build = {"vit": lambda: vit.build_vit(cfg, 10), "llama_small": lambda: llama.build_llama(cfg)}
    build["unet"] = lambda: unet.build_unet(cfg)
    build[family]()
    damaged(path, 1)
    with pytest.raises(UserError, match=r"is damaged: .* by `foura pretrain`"):
        build[family]()
    record("faults", f"weights of the bundled {family} damaged", "1 flipped bit, refused in a sentence")


def test_every_flipped_bit_of_a_file_with_a_checksum_is_seen(tmp_path) -> None:
    intact, path = vit.WEIGHTS, tmp_path / "adapter_model.safetensors"
    for number in range(FLIPS):
        shutil.copy(intact, path)
        write_checksum(path)
        read_weights(path)
        damaged(path, number)
        with pytest.raises(UserError, match="is damaged"):
            read_weights(path)
    record("faults", "a run's adapter damaged", f"{FLIPS} flipped bits, refused in a sentence")
