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

import foura
import foura.metrics
from foura import FouraConfig
from foura.adapter.gates import GATES
from foura.adapter.transforms import TRANSFORMS
from foura.families import FAMILIES, language
from foura.families.language.formats import FORMATS
from foura.methods import METHODS
from tests.helpers.tiny_models import tiny_clip, tiny_llama, tiny_unet
from tests.helpers.tokenizers import byte_level

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
        ("library.md", "Using the adapter of a run"),
        ("library.md", "Images"),
        ("library.md", "Language"),
        ("library.md", "Text classification"),
        ("library.md", "Diffusion"),
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


def test_the_adapter_of_a_run(train) -> None:
    folder = train("adapter=foura", "rank=2", "dataset.limit=40", "trainer.max_epochs=1").folder()
    names: dict[str, Any] = {"RUN": str(folder)}
    exec(PYTHON["library.md", "Using the adapter of a run"], names)
    with torch.no_grad():
        assert names["model"](torch.zeros(1, 1, 16, 16)).shape == (1, 10)


HEADINGS = {"vit": "Images", "llama_small": "Language", "bert": "Text classification", "unet": "Diffusion"}


def test_every_family_has_lines_for_inference_that_its_cards_repeat() -> None:
    assert HEADINGS.keys() == FAMILIES.keys()
    assert all(PYTHON["library.md", heading] == FAMILIES[name].inference for name, heading in HEADINGS.items())


def saved_adapter(base: nn.Module, **options: Any) -> None:
    get_peft_model(copy.deepcopy(base), FouraConfig(r=2, init_weights=False, **options)).save_pretrained("adapter")


def test_inference_with_images(monkeypatch, capsys) -> None:
    import timm
    from PIL import Image

    shape = {"depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 3}
    base = timm.create_model("vit_tiny_patch16_224", pretrained=False, **shape)
    saved_adapter(base, target_modules=["qkv"], modules_to_save=["head"])
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, num_classes: copy.deepcopy(base))
    names = {"BASE": "vit", "ADAPTER": "adapter", "CLASSES": 3, "image": Image.new("RGB", (30, 40))}
    exec(PYTHON["library.md", "Images"], names)
    assert "tensor([[0." in capsys.readouterr().out


def test_inference_with_language(base, capsys) -> None:
    base.resize_token_embeddings(300)
    base.save_pretrained("base")
    byte_level().save_pretrained("base")
    saved_adapter(base, target_modules=["q_proj"])
    exec(PYTHON["library.md", "Language"], {"BASE": "base", "ADAPTER": "adapter"})
    assert "Once upon a time" in capsys.readouterr().out


def test_inference_with_text_classification(capsys) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForSequenceClassification(BertConfig(**shape, vocab_size=300, num_labels=3))
    bert.save_pretrained("base")
    byte_level().save_pretrained("base")
    saved_adapter(bert, target_modules=["query"], modules_to_save=["classifier"])
    exec(PYTHON["library.md", "Text classification"], {"BASE": "base", "ADAPTER": "adapter", "CLASSES": 3})
    assert "tensor([[0." in capsys.readouterr().out


def test_inference_with_diffusion(monkeypatch, tmp_path) -> None:
    import diffusers
    from PIL import Image

    unet = tiny_unet()
    unet.add_adapter(FouraConfig(r=2, target_modules=["to_q"], init_weights=False), "style")
    foura.save_as_lora(unet, "as_lora", "style", naming="diffusers")
    real = diffusers.StableDiffusionPipeline.lora_state_dict

    class Pipe:
        """A pipeline that reads LoRAs as diffusers does, and returns a picture."""

        from_pretrained = classmethod(lambda cls, base: cls())

        def load_lora_weights(self, folder: str) -> None:
            state, _ = real(folder)
            assert any("to_q.lora" in name for name in state)

        def __call__(self, prompt: str, num_inference_steps: int) -> Any:
            return SimpleNamespace(images=[Image.new("RGB", (8, 8))])

    monkeypatch.setattr(diffusers, "StableDiffusionPipeline", Pipe)
    exec(PYTHON["library.md", "Diffusion"], {"BASE": "base", "LORA": "as_lora"})
    assert (tmp_path / "image.png").exists()


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
