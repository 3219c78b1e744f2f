"""The bundled language model, and files of JSON lines."""

import json

import pytest
from omegaconf import OmegaConf

from foura.families.language.backbone import build_llama
from foura.schema import BackboneConfig


@pytest.fixture(scope="module")
def llama():
    return build_llama(OmegaConf.structured(BackboneConfig(family="llama_small", gate_scope="token")))


@pytest.fixture
def lines(tmp_path):
    """Writes records as JSON lines and returns the file."""

    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write
