"""`pip install foura` without extras, in an environment of its own: the adapter works, the framework names its extra."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

USE = """
import copy, importlib.util, torch
from torch import nn
import foura
from foura import FouraConfig
from peft import PeftModel, get_peft_model

torch.manual_seed(0)
base, x = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 6)).double(), torch.randn(8, 5, 10).double()
target = torch.randn(8, 5, 6).double()
config = FouraConfig(r=4, target_modules=["0", "2"], gate="adaptive")
model = get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
optimizer, losses = torch.optim.AdamW(foura.param_groups(model, lr=1e-2, gate_lr=1e-1)), []
for _ in range(30):
    optimizer.zero_grad()
    loss = (model(x) - target).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.95 * losses[0], losses
model.eval().save_pretrained("adapter")
assert torch.equal(PeftModel.from_pretrained(copy.deepcopy(base), "adapter").eval()(x), model(x))
assert set(foura.freeze_gates(model, [x])) == {"0", "2"}
foura.save_as_lora(model, "lora")
lora = PeftModel.from_pretrained(copy.deepcopy(base), "lora", autocast_adapter_dtype=False).eval()
assert type(lora.base_model).__name__ == "LoraModel"
torch.testing.assert_close(lora(x), model(x), rtol=0, atol=1e-10)
torch.testing.assert_close(copy.deepcopy(model).merge_and_unload()(x), model(x), rtol=0, atol=1e-10)
names = "pytorch_lightning hydra omegaconf mlflow diffusers datasets timm torchvision torchmetrics sklearn pandas".split()
print(foura.__file__, [name for name in names if importlib.util.find_spec(name)])
"""


def closure(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions installed here that pip would install for these requirements, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        distribution = importlib.metadata.distribution(requirement.name)
        if distribution.name not in found or requirement.extras:
            found[distribution.name] = distribution
            needs = [Requirement(text) for text in distribution.requires or []]
            waiting += [(need, extra) for need in needs for extra in ("", *requirement.extras)]
    return found


@pytest.fixture(scope="module")
def light(tmp_path_factory, root) -> Path:
    """A folder with env/, an environment with the light set and foura installed in it by pip.

    torch is gigabytes: what the requirements name is linked from the environment of the tests, exactly that, and pip
    finds it there.
    """
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder / "env", symlinks=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for distribution in closure(project["dependencies"]).values():
        place = Path(str(distribution.locate_file("")))
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(place / top)
    source = folder / "source"  # building leaves files in the folder
    shutil.copytree(root / "foura", source / "foura", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py"):
        shutil.copy(root / name, source / name)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(root / "constraints.txt"), str(source)], check=True, cwd=folder)
    return folder


def call(light: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(light / "env/bin" / command[0]), *command[1:]],
        cwd=light,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_adapter_works_and_nothing_of_the_framework_is_there(light) -> None:
    answer = call(light, "python", "-c", USE)
    assert answer.returncode == 0, answer.stderr
    where, found = answer.stdout.strip().splitlines()[-1].split(" ", 1)
    assert where.startswith(str(light / "env")) and found == "[]"


@pytest.mark.slow
def test_the_framework_says_what_to_install(light) -> None:
    assert "pretrain" in call(light, "foura", "--help").stdout
    for command in (
        ("foura", "status", "demo"),
        ("foura", "export", "run", "--to", "lora", "out"),
        ("python", "source/train.py"),
    ):
        answer = call(light, *command)
        assert answer.returncode == 1 and "Traceback" not in answer.stderr, answer.stderr
        assert "pip install 'foura[lab]'" in answer.stderr and len(answer.stderr.strip().splitlines()) == 1
