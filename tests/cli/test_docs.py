"""The Python and YAML blocks of the README and of docs/ do what they say, on small models."""

import ast
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

import foura.metrics
from foura import FouraConfig
from foura.adapter.gates import GATES
from foura.adapter.transforms import TRANSFORMS
from foura.families import language
from foura.families.language.formats import FORMATS
from foura.methods import METHODS
from tests.helpers.tiny_models import tiny_clip, tiny_llama, tiny_unet

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADING = re.compile(r"^#+ (.*)$", flags=re.MULTILINE)


def blocks(language: str) -> dict[tuple[str, str], str]:
    """{(page, the last heading before it): code} of every block in this language."""
    found: dict[tuple[str, str], str] = {}
    fence = re.compile(rf"^( *)```{language}\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in fence.finditer(text):
            heading = HEADING.findall(text[: block.start()])[-1]
            assert (page.name, heading) not in found, "one block of a language per heading"
            # a block in a list is indented
            found[page.name, heading] = re.sub(rf"^{block[1]}", "", block[2], flags=re.MULTILINE)
    return found


PYTHON, YAML = blocks("python"), blocks("yaml")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _registries_as_they_were() -> Iterator[None]:
    registries: tuple[Any, ...] = (TRANSFORMS, GATES, METHODS, FORMATS, language.FAMILY.formats)
    before = [(registry, dict(registry)) for registry in registries]
    yield
    for registry, kept in before:
        registry.clear()
        registry.update(kept)


@pytest.fixture
def base() -> nn.Module:
    return tiny_llama()


def ids(rows: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 64, (rows, 7))}


def test_every_block_is_run_here() -> None:
    assert set(PYTHON) == {
        ("README.md", "The library"),
        ("library.md", "Which file for which program"),
        ("library.md", "With diffusers"),
        ("library.md", "Several adapters in one model"),
        ("extending.md", "A transform"),
        ("extending.md", "A gate"),
        ("extending.md", "An adapter of your own"),
        ("extending.md", "A metric"),
        ("extending.md", "A data format"),
    }
    assert set(YAML) == {("extending.md", "A transform"), ("extending.md", "An adapter of PEFT")}


def test_the_library(base, tmp_path) -> None:
    names: dict[str, Any] = {"base": base, "fresh_base": copy.deepcopy(base), "batches": [ids(2)]}
    exec(PYTHON["README.md", "The library"], names)
    assert type(names["merged"]) is type(base)
    assert (tmp_path / "as_lora" / "adapter_model.safetensors").exists()


def test_which_file_for_which_program(tmp_path) -> None:
    parts = {"unet": tiny_unet(), "text_encoder": tiny_clip(), "text_encoder_2": tiny_clip(projection=True)}
    for name, part in parts.items():
        part.add_adapter(FouraConfig(r=4, target_modules=["to_q" if name == "unet" else "q_proj"]), "default")
    exec(PYTHON["library.md", "Which file for which program"], {"pipe": SimpleNamespace(**parts)})
    names = load_file(tmp_path / "for_comfy" / "pytorch_lora_weights.safetensors")
    assert {name.partition("_text_model_")[0] for name in names if "text" in name} == {"lora_te1", "lora_te2"}
    assert (tmp_path / "for_diffusers" / "pytorch_lora_weights.safetensors").exists()


def test_with_diffusers(tmp_path) -> None:
    names: dict[str, Any] = {"unet": tiny_unet(), "other": tiny_unet()}
    exec(PYTHON["library.md", "With diffusers"], names)
    assert (tmp_path / "for_comfy" / "pytorch_lora_weights.safetensors").exists()
    assert names["other"].active_adapters() == ["style"]


def test_several_adapters(base) -> None:
    for name in "abc":
        config = FouraConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False)
        get_peft_model(copy.deepcopy(base), config).save_pretrained(name)
    names: dict[str, Any] = {"base": base, "batch_of_3": ids(3)}
    exec(PYTHON["library.md", "Several adapters in one model"], names)
    assert set(names["model"].peft_config) == {"a", "b", "both"}


def finished_with(adapter: str, train, tmp_path) -> dict[str, Any]:
    """The metrics of a short run with this file of an adapter, which lies outside the checkout."""
    name = re.search(r"^name: (\w+)$", adapter, flags=re.MULTILINE)[1]
    (tmp_path / "conf" / "adapter").mkdir(parents=True)
    (tmp_path / "conf" / "adapter" / f"{name}.yaml").write_text(adapter)
    ended = train(f"hydra.searchpath=[file://{tmp_path}/conf]", f"adapter={name}", "rank=4", "trainer.max_epochs=1")
    assert ended.code == 0, ended.out
    return json.loads((ended.folder() / "status.json").read_text())["metrics"]


def test_a_transform(base, train, tmp_path) -> None:
    names: dict[str, Any] = {"base": copy.deepcopy(base)}
    exec(PYTHON["extending.md", "A transform"], names)
    basis = names["Hartley"].basis(31, 0)
    torch.testing.assert_close(basis @ basis.T, torch.eye(31, dtype=torch.float64))
    PeftModel.from_pretrained(base, str(tmp_path / "hartley_as_lora"))
    assert finished_with(YAML["extending.md", "A transform"], train, tmp_path)["adapter/effective_rank"] == 4


def test_a_gate(base, capsys) -> None:
    names: dict[str, Any] = {"base": base, "batches": [ids(2)]}
    exec(PYTHON["extending.md", "A gate"], names)
    assert ast.literal_eval(capsys.readouterr().out).keys() == {
        f"model.layers.{layer}.self_attn.{target}" for layer in (0, 1) for target in ("q_proj", "v_proj")
    }
    names["model"].merge_and_unload()


def test_an_adapter_of_peft(train, tmp_path) -> None:
    assert "test/acc" in finished_with(YAML["extending.md", "An adapter of PEFT"], train, tmp_path)
    config = json.loads(next(tmp_path.glob("outputs/runs/*/adapter/adapter_config.json")).read_text())
    assert config["peft_type"] == "HRA" and config["r"] == 4


def test_an_adapter_of_your_own(train, tmp_path) -> None:
    exec(PYTHON["extending.md", "An adapter of your own"], {})
    assert "test/acc" in finished_with("name: sparse_lora\nmethod: sparse_lora\n", train, tmp_path)


def test_a_metric() -> None:
    exec(PYTHON["extending.md", "A metric"], {})
    section = (ROOT / "docs" / "extending.md").read_text().partition("## A metric\n")[2].partition("\n## ")[0]
    places = [name for name, value in vars(foura.metrics).items() if name.isupper() and isinstance(value, str)]
    assert all(f"`{place}`" in section for place in places)


def test_a_data_format(train, tmp_path) -> None:
    exec(PYTHON["extending.md", "A data format"], {})
    records = [{"question": f"{number} and one make", "answer": str(number + 1)} for number in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    data = ("dataset=jsonl", f"dataset.path={tmp_path}/data.jsonl", "dataset.format=question")
    ended = train("backbone=llama_small", *data, "rank=4", "trainer.max_epochs=1")
    assert ended.code == 0 and "test/loss" in json.loads((ended.folder() / "status.json").read_text())["metrics"]
