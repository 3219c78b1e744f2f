"""Commands that train nothing answer at once: they import nothing heavy, so that a slow machine does not matter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.helpers.config import composed
from tests.helpers.imports import HEAVY, imports_of

TYPOS = {
    "adapter=fuora": "Did you mean foura?",
    "adaptor=foura": "Did you mean adapter?",
    "rnak=64": "Did you mean rank?",
    "trainer.max_epoch=3": "Did you mean max_epochs?",
    "rank=many": "could not be converted to Integer",
    "rank=0": "rank must be at least 1",
    "dataset=cifar": "Valid choices: digits, docstrings, hf, imagefolder",
    "adapter.transform=dtc": "Valid choices: dct, dft, identity, random",
}


def test_the_list_of_imports_has_what_is_heavy(run_env, tmp_path) -> None:
    _, imported = imports_of(["-c", "import numpy.linalg, json"], run_env, tmp_path)
    assert imported & HEAVY == {"numpy"} and "json" in imported


def test_the_config_is_shown_at_once(root, run_env, tmp_path) -> None:
    answer, imported = imports_of([str(root / "train.py"), "--cfg", "job"], run_env, tmp_path)
    assert answer.returncode == 0
    assert "rank: 16" in answer.stdout
    assert "hydra" in imported and not imported & HEAVY


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_answered_at_once_and_names_the_choices(typo, root, run_env, tmp_path) -> None:
    answer, imported = imports_of([str(root / "train.py"), typo], run_env, tmp_path)
    assert answer.returncode != 0
    assert answer.stderr.startswith("error: ")
    assert TYPOS[typo] in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "hydra" in imported and not imported & HEAVY


@pytest.mark.parametrize("command", ["ui", "status s", "report s"])
def test_a_place_without_runs_is_said_at_once(command, run_env, tmp_path) -> None:
    answer, imported = imports_of(["-m", "foura", *command.split()], run_env, tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: there ")
    assert "foura" in imported and not imported & HEAVY


def saved_run(folder: Path, *overrides: str, gate: str) -> Path:
    """A run's folder as far as the checks of an export read it."""
    OmegaConf.save(composed(*overrides), folder / "config.yaml", resolve=True)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "FOURA", "gate": gate}))
    return folder


@pytest.mark.parametrize(
    ("gate", "form", "said"),
    [
        ("adaptive", "lora", "this adapter's gate depends on the input, so it is not a single update: add --freeze."),
        ("adaptive", "merged", "add --freeze."),
        ("none", "kohya", "--to kohya is not a form of adapters of backbone=vit; choose one of peft, merged, lora."),
        ("none", "lora", "exists already; name a folder that does not."),
    ],
)
def test_an_export_that_cannot_be_made_is_refused_at_once(gate, form, said, run_env, tmp_path) -> None:
    run, out = saved_run(tmp_path, "adapter=foura", gate=gate), tmp_path / "out"
    if "exists" in said:
        out.mkdir()
    answer, imported = imports_of(["-m", "foura", "export", str(run), "--to", form, str(out)], run_env, tmp_path)
    assert answer.returncode == 1 and answer.stderr.startswith("error: ") and answer.stderr.strip().endswith(said)
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "hydra" in imported and not imported & HEAVY


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adapter=lora", "rank=4"], "lora r4 seed 0: loading …"),
        pytest.param(["-m", "sweep=s", "seed=0,1"], "sweep s: 2 runs, 0 done, 2 to run", marks=pytest.mark.slow),
    ],
)
def test_a_run_says_that_it_is_loading_before_it_loads(arguments, said, root, run_env, tmp_path) -> None:
    """In place of torch there is a module that says when it is imported, and ends the process."""
    (tmp_path / "torch.py").write_text("import os\nprint('torch is imported', flush=True)\nos._exit(3)")
    env = run_env | {"PYTHONPATH": os.pathsep.join((str(tmp_path), run_env["PYTHONPATH"]))}
    command = [sys.executable, str(root / "train.py"), *arguments]
    ended = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == [said, "torch is imported"]


@pytest.mark.parametrize("command", ["train.py adapter=lora", "-m foura merge-eval a b"])
@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_are_told_how_to_wait_before_torch_is_loaded(command, given, spins, root, run_env, tmp_path) -> None:
    """In place of torch there is a module that says what it finds."""
    (tmp_path / "torch.py").write_text("import os, sys\nsys.exit(f\"spins: {os.environ.get('GOMP_SPINCOUNT')}\")")
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    env = {key: value for key, value in run_env.items() if key not in names} | given
    env["PYTHONPATH"] = os.pathsep.join((str(tmp_path), env["PYTHONPATH"]))
    words = [str(root / word) if word == "train.py" else word for word in command.split()]
    ended = subprocess.run([sys.executable, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"spins: {spins}" in ended.stderr + ended.stdout
