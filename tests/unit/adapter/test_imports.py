"""The adapter is a light library: what it imports, and what the extra "lab" is said to bring."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest

from foura.errors import LAB, exit_without_lab

USE = """
import copy, sys, tempfile
import foura
assert not {"torch", "peft"} & set(sys.modules)  # nothing before PEFT is asked for
import peft
by_peft = set(sys.modules)
import torch
from torch import nn
base, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 3, 8)
model = peft.get_peft_model(copy.deepcopy(base), foura.FouraConfig(r=2, target_modules=["0"], gate="adaptive"))
model(x).sum().backward()
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)
    foura.freeze_gates(model, [x])
    foura.save_as_lora(model, folder + "/lora")
model.merge_and_unload()
print("\\n".join({name.partition(".")[0] for name in sys.modules}))
print("--")
print("\\n".join({name.partition(".")[0] for name in by_peft}))
"""


def test_using_the_adapter_loads_nothing_of_the_framework(root) -> None:
    answer = subprocess.run([sys.executable, "-c", USE], cwd=root, capture_output=True, text=True, check=True)
    loaded, by_peft = (set(part.split()) for part in answer.stdout.split("--"))
    assert {"foura", "peft", "safetensors"} <= loaded
    heavy = {"pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "mlflow", "diffusers", "datasets", "timm"}
    assert not loaded & heavy
    assert not (loaded - by_peft) & set(LAB)  # torchvision and PIL: transformers loads them where they are installed


def test_the_lab_is_what_pyproject_says(root) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    brought = {re.split(r"[^\w-]", text)[0].lower() for text in project["optional-dependencies"]["lab"]}
    packages = {
        name: {distribution.lower() for distribution in distributions}
        for name, distributions in importlib.metadata.packages_distributions().items()
    }
    assert all(packages[name] & brought for name in LAB)
    assert brought <= set().union(*(packages[name] for name in LAB))


def test_a_missing_package_of_the_lab_is_said_in_a_sentence() -> None:
    with pytest.raises(SystemExit, match=r"omegaconf.errors is not installed.*pip install 'foura\[lab\]'"):
        exit_without_lab(ModuleNotFoundError(name="omegaconf.errors"))
    with pytest.raises(ModuleNotFoundError):
        exit_without_lab(ModuleNotFoundError(name="foura.typo"))
