"""Commands start light: nothing heavy is imported before the arguments are known to be sound."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "peft", "transformers", "diffusers", "pytorch_lightning", "mlflow", "timm", "datasets", "pandas")
HEAVY += ("matplotlib", "numpy", "scipy", "sklearn", "torchmetrics")
SCRIPT = """
import json, runpy, sys
sys.argv = json.loads(sys.argv[1])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    print(ended.code)
print([name for name in json.loads(HEAVY) if name in sys.modules])
"""


def ended(run_env, tmp_path, *argv: str) -> tuple[str, str]:
    """(what a command exits with, the heavy modules that it has imported)."""
    script = SCRIPT.replace("HEAVY", repr(json.dumps(HEAVY)))
    command = [sys.executable, "-c", script, json.dumps(argv)]
    answer = subprocess.run(command, capture_output=True, text=True, env=run_env, cwd=tmp_path, check=True)
    *_, code, modules = answer.stdout.strip().splitlines()
    return code, modules


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["rank=0"], "error: rank must be at least 1, got 0."),
        (["adapter=fuora"], "error: adapter=fuora is not known. Did you mean foura?"),
        (["trainer.max_epoch=1"], "error: trainer.max_epoch is not a key of trainer. Did you mean max_epochs?"),
        (
            ["adapter.options.x=1"],
            "error: adapter.options.x is not set yet; a plus sign adds it: +adapter.options.NAME",
        ),
        (["select=fid"], "error: select=fid is not known."),
        (["dataset=jsonl", "dataset.path=x"], "error: dataset=jsonl does not go with backbone=vit."),
        (["trainer.devices=2"], "error: trainer.devices=2 on trainer.num_nodes=1 needs a strategy"),
        (["-m", "sweep=s", "plan=true", "rank=0,4"], "error: "),
        (["-m", "sweep=s", "plan=true", "rank=2,4"], "0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_refuses_before_anything_heavy_is_imported(arguments, code, root, run_env, tmp_path) -> None:
    said, modules = ended(run_env, tmp_path, str(root / "train.py"), *arguments)
    assert said.startswith(code)
    assert modules == "[]"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ui"], "error: there are no runs at "),
        (["report", "s"], "error: there are no runs at "),
        (["status", "s"], "error: there is no sweep s in outputs."),
        (["sync", "nowhere"], "error: there is no folder "),
        (["merge-eval", "run"], "error: name at least two runs to merge."),
        (["pretrain", "resnet"], "error: backbone resnet is not known; choose one of vit, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_foura_refuses_before_anything_heavy_is_imported(arguments, code, root, run_env, tmp_path) -> None:
    said, modules = ended(run_env, tmp_path, str(root / "foura" / "__main__.py"), *arguments)
    assert said.startswith(code)
    assert modules == "[]"
    assert not any(tmp_path.iterdir())
