"""The library as an editor and a prompt show it: help, completion, and answers to names of LoRA."""

import dataclasses
import inspect
import json
import pydoc
import re
import subprocess
import sys

import pytest

import foura
from foura import FouraConfig
from foura.adapter.gate import GATE_SCOPES
from foura.adapter.gate_forms import GATE_FORMS
from foura.adapter.gates import GATES
from foura.adapter.transforms import TRANSFORMS


def test_help_explains_every_field() -> None:
    shown = pydoc.plain(pydoc.render_doc(FouraConfig))
    for spec in dataclasses.fields(FouraConfig):
        assert re.search(rf"^ \|      .*\b{spec.name}\b.*:", shown, flags=re.MULTILINE), spec.name
    assert "The defaults have no gate" in shown and "r: int = 8" in str(inspect.signature(FouraConfig))


def test_dir_shows_the_public_names_before_anything_is_imported() -> None:
    code = "import foura, sys; print(*dir(foura)); assert 'peft' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(said) == {*foura.__all__, "__version__"}
    assert all(getattr(foura, name) is not None for name in said)


def test_an_editor_completes_the_choices() -> None:
    hints = {spec.name: str(spec.type) for spec in dataclasses.fields(FouraConfig)}
    choices = {
        "transform": TRANSFORMS,
        "gate": GATES,
        "gate_scope": GATE_SCOPES,
        "gate_form": GATE_FORMS,
        "bias": ("none", "all", "foura_only"),
    }
    for name, known in choices.items():
        assert all(f"'{choice}'" in hints[name] for choice in known), hints[name]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lora_alpha", "foura_alpha"),
        ("lora_dropout", "foura_dropout"),
        ("init_lora_weights", "init_weights"),
        ("alpha", "foura_alpha"),
        ("dropout", "foura_dropout"),
        ("lora_r", "r"),
        ("rank", "r"),
        ("target_module", "target_modules"),
    ],
)
def test_an_unknown_field_is_answered_with_the_one_that_was_meant(name, meant) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'; did you mean {meant}\?"):
        FouraConfig(**{name: 1})


def test_a_name_like_none_gets_no_guess_and_a_choice_is_still_checked() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'qqq'$"):
        FouraConfig(qqq=1)
    with pytest.raises(ValueError, match="gate_scope='x' is not known"):
        FouraConfig(gate_scope="x")
    with pytest.raises(TypeError, match="transform must be str, got 3"):
        FouraConfig(transform=3)


def test_a_config_of_a_newer_version_still_loads_with_peft_s_warning(tmp_path) -> None:
    FouraConfig(r=4).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_the_future": 1}))
    with pytest.warns(UserWarning, match="of_the_future"):
        assert FouraConfig.from_pretrained(str(tmp_path)).r == 4
