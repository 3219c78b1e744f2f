"""Names, commands, facts and model cards of runs."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import OmegaConf

from foura.run.card import write_card
from foura.run.facts import facts
from foura.run.naming import command_of, config_flags, run_name
from tests.helpers.config import composed


def folder_of(tmp_path: Path, *overrides: str, varied: str | None = None) -> Path:
    """A run's folder in the sweep s, with Hydra's note of its overrides."""
    folder = tmp_path / "sweeps" / "s" / "one"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    if varied is not None:
        (folder.parent / "sweep.json").write_text(json.dumps({"varied": varied}))
    return folder


@pytest.mark.parametrize(
    ("varied", "name"),
    [
        ("adapter,adapter.lr,seed", "lora seed 3 lr 3e-3"),
        ("adapter,rank,seed", "lora r8 seed 3"),
        ("dataset,seed", "lora seed 3 digits"),
        ("dataset.limit", "lora limit 40"),
        (None, "lora r8 seed 3 lr 3e-3 digits limit 40"),
    ],
)
def test_a_name_shows_what_varies_in_the_sweep(varied, name, tmp_path) -> None:
    told = ("adapter=lora", "adapter.lr=3e-3", "rank=8", "dataset=digits", "dataset.limit=40", "seed=3", "sweep=s")
    folder = folder_of(tmp_path, *told, varied=varied)
    assert run_name(composed(*told[:-1], f"outputs={tmp_path}"), folder, "s") == name


def test_a_single_run_is_named_by_what_was_set(tmp_path) -> None:
    told = ("rank=8", "backbone=vit", "dataset.path=/data/of/mine/cats", "outputs=here", "force=true")
    folder = folder_of(tmp_path, *told)
    assert run_name(composed("rank=8"), folder, None) == "foura r8 seed 0 vit path cats"
    assert command_of(folder) == "python train.py rank=8 backbone=vit dataset.path=/data/of/mine/cats outputs=here"
    assert run_name(composed(), tmp_path, None) == "foura r16 seed 0"  # no notes of Hydra's


def test_a_part_of_a_password_is_in_no_name(tmp_path, monkeypatch) -> None:
    """A name has the end of a value alone, in which a password is not found any more."""
    monkeypatch.setenv("HF_TOKEN", "sw0rdfish-sw0rdfish-sw0rdfish")
    told = ("adapter.name=xsw0rdfish-sw0rdfish-sw0rdfish", "dataset.path=/a/sw0rdfish-sw0rdfish-sw0rdfish")
    assert run_name(composed(), folder_of(tmp_path, *told), None) == "foura r16 seed 0 name x*** path ***"


def data(classes: int | None) -> SimpleNamespace:
    sizes = {"train": 120, "validation": 40, "test": 40}
    return SimpleNamespace(sizes=sizes, classes=classes and [str(number) for number in range(classes)], commonest=None)


@pytest.mark.parametrize(
    ("overrides", "classes", "said"),
    [
        ((), 10, "train 120 · validation 40 · test 40, 10 classes (chance 0.10) · split seed 0 · "
                 "backbone: bundled ViT, pretrained on rendered letters"),
        (("backbone.pretrained=false",), 4, "4 classes (chance 0.25) · split seed 0 · backbone: bundled ViT, with random"),
        (("backbone.name=vit_tiny_patch16_224", "dataset.split_seed=7"), 2,
         "2 classes (chance 0.50) · split seed 7 · backbone: vit_tiny_patch16_224, with its pretrained weights"),
        (("backbone=llama_small",), None, "test 40 · split seed 0 · backbone: bundled LLaMA, pretrained on English"),
        (("backbone=llama_small", "dataset=jsonl", "dataset.path=x", "dataset.format=verbalizer",
          "dataset.template='{a}'", "dataset.verbalizer=[a,b,c]"), None, "3 classes (chance 0.33)"),
    ],
)  # fmt: skip
def test_one_line_says_what_a_run_is_about(overrides, classes, said) -> None:
    assert said in facts(composed(*overrides), data(classes))


@pytest.mark.parametrize(
    ("commonest", "said"),
    [
        (0.5, "2 classes (chance 0.50) ·"),
        (0.54, "(chance 0.50) ·"),
        (0.7, "(chance 0.50, always the commonest 0.70) ·"),
    ],
)
def test_the_commonest_class_is_named_where_it_beats_chance(commonest, said) -> None:
    unequal = data(2)
    unequal.commonest = commonest
    assert said in facts(composed(), unequal)


def card(tmp_path: Path, *overrides: str, classes: int | None = 10) -> str:
    folder = folder_of(tmp_path, *overrides)
    (folder / "adapter").mkdir()
    metrics = {"best/acc": 0.75, "test/acc": 0.7, "test/loss": 1.5, "best/loss": 1.25, "cost/trainable_params": 5.0}
    cfg = composed(*overrides)
    write_card(cfg, folder, facts(cfg, data(classes)), metrics, data(classes))
    return (folder / "adapter" / "README.md").read_text()


def test_the_card_of_an_adapter_is_filled_in(tmp_path) -> None:
    text = card(tmp_path, "rank=8")
    assert "[More Information Needed]" not in text
    _, head, body = text.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["library_name"] == "peft" and fields["license"] == "unknown" and fields["datasets"] == ["digits"]
    assert fields["tags"] == ["foura", "vit"] and "base_model" not in fields  # the bundled one is not on the hub
    assert "| acc | 0.75 | 0.7 |" in body and "| loss | 1.25 | 1.5 |" in body and "cost/" not in body
    assert "bundled ViT, pretrained on rendered letters" in body and "`python train.py rank=8`" in body
    assert "KeyError: 'FOURA'" in body and "foura export RUN --to lora OUT" in body and "read_config(run)" in body


def test_a_name_with_anything_in_it_makes_no_field_of_the_card(tmp_path) -> None:
    name = "a: b\nbase_model: evil | [x"
    text = card(tmp_path, f"adapter.name={json.dumps(name)}", "dataset.name='c, d'")
    _, head, body = text.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["tags"][0] == name.replace("\n", "\\n") and fields["datasets"] == ["c, d"]
    assert "base_model" not in fields
    assert "| method | `adapter=a: b\\nbase_model: evil / [x`, rank 16" in body


def test_the_card_on_another_model_has_lines_for_it(tmp_path) -> None:
    text = card(tmp_path, "adapter=lora", "backbone.name=vit_tiny_patch16_224", classes=3)
    assert "base_model: 'vit_tiny_patch16_224'" in text
    assert "BASE = 'vit_tiny_patch16_224'\nADAPTER = 'adapter'\nCLASSES = 3\n" in text.replace("\n\n", "\n")
    assert "KeyError" not in text  # PEFT loads a LoRA by itself


def test_a_path_with_marks_of_a_table_does_not_break_the_card(tmp_path) -> None:
    text = card(tmp_path, "dataset=imagefolder", "dataset.path='a|b\x1b[2J'")
    assert "a/b\\x1b[2J" in text and "\x1b" not in text


def test_flags_say_where_the_configuration_is_if_it_is_not_the_projects(root, tmp_path) -> None:
    def flags(main, *more, name="config") -> list[str]:
        sources = [{"path": str(main), "provider": "main"}, {"path": "foura.sweep", "provider": "hydra"}]
        sources += [{"path": str(folder), "provider": "command-line"} for folder in more]
        node = {"runtime": {"config_sources": sources}, "job": {"config_name": name}}
        return config_flags(OmegaConf.create(node))

    assert flags(root / "conf") == []
    assert flags(tmp_path / "conf") == [f"--config-path={tmp_path}/conf"]
    own = flags(root / "conf", root / "own", name="mine")
    assert own == [f"--config-dir={os.path.relpath(root / 'own')}", "--config-name=mine"]
