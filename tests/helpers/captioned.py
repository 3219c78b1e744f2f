"""Images with captions as the diffusion family reads them."""

import json

from omegaconf import OmegaConf

from foura.families.diffusion.backbone import caption_bytes
from foura.families.diffusion.data import prepare_captioned
from foura.families.diffusion.sources import open_captioned
from foura.schema import DatasetConfig


def config(**fields):
    return OmegaConf.structured(DatasetConfig(name="test", source=fields.pop("source", "imagefolder"), **fields))


def prepared(cfg, size=16, seed=0, **options):
    return prepare_captioned(
        open_captioned(cfg), cfg, seed, size, caption_bytes, lambda pixels: pixels * 2 - 1, **options
    )


def write_captions(place, which) -> None:
    lines = [json.dumps({"file_name": f"{index:02d}.png", "text": f"shade {index}"}) for index in which]
    (place / "metadata.jsonl").write_text("\n".join(lines))
