"""The README's Python runs as it stands, on small models."""

import copy
import re
from typing import Any

import pytest
import torch
from peft import get_peft_model

from foura import FouraConfig
from tests.helpers.tiny_models import tiny_llama, tiny_unet


@pytest.fixture
def blocks(root) -> dict[str, str]:
    """{first words: code} of the README's Python blocks."""
    found = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), flags=re.DOTALL)
    return {code.split("\n", 1)[0]: code for code in found}


def ids(rows: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 64, (rows, 7))}


def test_every_block_is_run_here(blocks) -> None:
    assert len(blocks) == 3


def test_the_library_alone(blocks, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_llama()
    names: dict[str, Any] = {"base": base, "fresh_base": copy.deepcopy(base), "batches": [ids(2)]}
    exec(blocks["import foura  # makes the method known to PEFT"], names)
    assert type(names["merged"]) is type(base)
    assert (tmp_path / "as_lora" / "adapter_model.safetensors").exists()


def test_with_diffusers(blocks, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"unet": tiny_unet(), "other": tiny_unet(), "FouraConfig": FouraConfig}
    exec("import foura\n" + blocks["from peft import get_peft_model_state_dict, set_peft_model_state_dict"], names)
    assert (tmp_path / "for_comfy" / "pytorch_lora_weights.safetensors").exists()
    assert names["other"].active_adapters() == ["style"]


def test_several_adapters(blocks, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_llama()
    for name in "abc":
        config = FouraConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False)
        get_peft_model(copy.deepcopy(base), config).save_pretrained(name)
    code = blocks['model = PeftModel.from_pretrained(base, "a/", adapter_name="a").eval()']
    names: dict[str, Any] = {"base": base, "batch_of_3": ids(3)}
    exec("import foura\nfrom peft import PeftModel\n" + code, names)
    assert set(names["model"].peft_config) == {"a", "b", "both"}
