"""An outputs folder of version 0.1.0 (commit 648038c): its runs resume, its adapters are exported, its sweep is reported.

tests/fixtures/make.py made the folder with the code of that commit, and every number that is expected here.
"""

import copy
import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel
from mlflow.tracking import MlflowClient
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from foura import cli, freeze_gates
from foura.families import build
from foura.families.family import Parts
from foura.run.export import export
from foura.run.load import load_adapter, read_config
from foura.run.loop import Loaders, trainer_of
from tests.fixtures.make import unpack
from tests.helpers.runs import scientific

OLD = Path(__file__).resolve().parents[2] / "fixtures" / "v0.1.0"
STOPPED = ("adapter=foura", "adapter.gate_form=entropy", "rank=2", "adapter.dropout=0.1", "trainer.max_epochs=2")
EQUAL = 1e-5  # relative: another processor rounds differently


@pytest.fixture
def outputs(tmp_path) -> Path:
    return unpack(OLD, tmp_path / "outputs")


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def test_no_file_has_a_path_of_the_machine_that_made_it(outputs) -> None:
    with (OLD / "runs/vit/config.yaml").open() as file:
        assert "outputs: /PLACE/outputs\n" in file
    assert str(outputs) in (outputs / "runs/vit/config.yaml").read_text()
    for path in [*OLD.rglob("*"), outputs / "mlflow.db"]:
        if path.is_file() and path.suffix != ".xz":
            data = path.read_bytes()
            assert not any(place in data for place in (b"/home/", b"/root/")), path


def test_a_stopped_run_resumes_to_the_numbers_of_a_whole_one(outputs, train) -> None:
    folder = outputs / "runs" / "stopped"
    before = status(folder)
    ended = train(*STOPPED, f"hydra.run.dir={folder}")
    assert ended.code == 0, ended.out
    assert "resumes after batch 2 of epoch 2" in ended.out
    after, expected = status(folder), json.loads((OLD / "expected.json").read_text())
    assert after["state"] == "finished" and after["key"] == before["key"] and after["run_id"] == before["run_id"]
    found = scientific(after["metrics"])
    assert found.pop("drift/loss") > 0  # was not measured by default then
    assert found == pytest.approx(scientific(expected), rel=EQUAL)
    run = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}").get_run(after["run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics["test/loss"] == after["metrics"]["test/loss"]


INPUTS = {
    "vit": lambda: {"x": torch.randn(2, 1, 16, 16)},
    "llama": lambda: {"input_ids": torch.arange(20).unsqueeze(0)},
    "unet": lambda: {
        "noisy": torch.randn(2, 3, 16, 16),
        "timestep": torch.tensor([10, 500]),
        "captions": torch.zeros(2, 8, dtype=torch.long),
    },
}


def output(model, name: str):
    torch.manual_seed(0)
    with torch.no_grad():
        found = model.eval()(**INPUTS[name]())
    return getattr(found, "logits", found)


@pytest.fixture(scope="module")
def parts() -> Callable[[str], Parts]:
    """parts(name): what that run was made of, without its adapter; the model is a copy that a test may change."""
    built = functools.cache(lambda name: build(read_config(OLD / "runs" / name)))
    return lambda name: copy.deepcopy(built(name))


def load_merged(model, name: str, place: Path):
    """The exported model, as the library that it is for loads it."""
    if name == "llama":
        return AutoModelForCausalLM.from_pretrained(place).float()
    if name == "unet":
        model.unet = UNet2DConditionModel.from_pretrained(place / "unet")
    else:
        model.load_state_dict(load_file(place / "model.safetensors"))
    return model


@pytest.mark.parametrize("name", INPUTS)
def test_a_finished_run_is_exported_and_computes_what_it_computed(name, outputs, parts, tmp_path) -> None:
    folder, run = outputs / "runs" / name, parts(name)
    export(folder, "peft", tmp_path / "peft")
    model: Any = PeftModel.from_pretrained(run.backbone.model, str(tmp_path / "peft"))
    if getattr(model.peft_config["default"], "gate_depends_on_input", False):  # as --freeze does
        freeze_gates(model, Loaders(run.data, read_config(folder)).inputs(run.task(model), run.data.train))
    expected = output(model, name)
    assert not torch.allclose(expected, output(parts(name).backbone.model, name), atol=1e-3)
    export(folder, "merged", tmp_path / "merged", freeze=True)
    merged = load_merged(parts(name).backbone.model, name, tmp_path / "merged")
    torch.testing.assert_close(output(merged, name), expected, rtol=1e-4, atol=1e-4)
    if name == "unet":
        return  # a LoRA already
    export(folder, "lora", tmp_path / "lora", freeze=True)
    lora = PeftModel.from_pretrained(parts(name).backbone.model, str(tmp_path / "lora"))
    torch.testing.assert_close(output(lora, name), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", INPUTS)
def test_the_saved_adapter_has_the_loss_that_was_reported(name, outputs, parts) -> None:
    """Evaluated by this code, on the test data of the old config."""
    folder, run = outputs / "runs" / name, parts(name)
    cfg = read_config(folder)
    task = run.task(load_adapter(run.backbone.model, folder, cfg))
    trainer_of(cfg, folder, []).test(task, Loaders(run.data, cfg).test(), verbose=False)
    assert task.tested["test/loss"] == pytest.approx(status(folder)["metrics"]["test/loss"], rel=EQUAL)


def command(monkeypatch, capsys, *arguments: object) -> list[str]:
    """Lines that a foura command prints."""
    monkeypatch.setattr("sys.argv", ["foura", *map(str, arguments)])
    cli.main()
    return capsys.readouterr().out.splitlines()


def test_a_sweep_is_reported_with_its_old_numbers(outputs, monkeypatch, capsys) -> None:
    expected = pd.read_csv(outputs / "sweeps/old/report/summary.csv").set_index("adapter")
    shutil.rmtree(outputs / "sweeps/old/report")
    command(monkeypatch, capsys, "report", "old", "--outputs", outputs)
    report = outputs / "sweeps/old/report"
    runs = pd.read_csv(report / "runs.csv").set_index("run_id")
    states = [status(path.parent) for path in outputs.glob("sweeps/old/*/status.json")]
    assert len(states) == len(runs) == 6
    for one in states:
        for metric in ("test/acc", "test/loss", "best/loss", "cost/trainable_params", "adapter/delta_norm"):
            assert runs.loc[one["run_id"], metric] == pytest.approx(one["metrics"][metric], rel=1e-5)
    found = pd.read_csv(report / "summary.csv").set_index("adapter")
    for column in ("seeds", "test accuracy", "± test accuracy", "test loss", "gap in accuracy"):
        for adapter in ("lora", "foura_dct"):
            assert math.isclose(found.loc[adapter, column], expected.loc[adapter, column], rel_tol=1e-5)
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "6 runs: 6 finished" in page and "trainer.max_epochs=1" in page


def test_the_status_of_a_sweep_and_its_journals_are_read(outputs, monkeypatch, capsys) -> None:
    lines = command(monkeypatch, capsys, "status", "old", "--outputs", outputs)
    assert lines[-1] == "6 started: 6 finished" and len(lines) == 7
    # the artifacts of the old store are not in the fixture, as where a user deleted them
    mended = command(monkeypatch, capsys, "sync", outputs)
    assert len(mended) == 9 and all(line.startswith("mended: ") for line in mended)
    assert command(monkeypatch, capsys, "sync", outputs) == ["nothing to send"]


def test_a_store_that_is_lost_is_made_again_from_the_old_journals(outputs, tmp_path, monkeypatch, capsys) -> None:
    moved = shutil.copytree(outputs, tmp_path / "moved")
    (moved / "mlflow.db").unlink()
    lines = command(monkeypatch, capsys, "sync", moved)
    # artifacts that are not among the files of the fixture are left out, as where a user deleted them
    assert len(lines) == 10 and all(line.startswith("made again: ") for line in lines)
    assert command(monkeypatch, capsys, "sync", moved) == ["nothing to send"]
    command(monkeypatch, capsys, "report", "old", "--outputs", moved)
    assert "6 runs: 6 finished" in (moved / "sweeps/old/report/report.html").read_text(encoding="utf-8")


def test_a_sweep_is_continued_with_another_seed(outputs, train) -> None:
    grid = ("-m", "sweep=old", "adapter=lora,foura_dct", "seed=0,1,2,3", "rank=1", "trainer.max_epochs=1")
    before = pd.read_csv(outputs / "sweeps/old/report/summary.csv")
    planned = train(*grid, "plan=true")
    assert planned.code == 0 and "8 runs, 6 done, 2 to run" in planned.out
    ended = train(*grid)
    assert ended.code == 0 and "sweep old: 8 finished" in ended.out, ended.out
    summary = pd.read_csv(outputs / "sweeps/old/report/summary.csv")
    # keys that were added since are no conditions of the study
    assert list(summary["seeds"]) == [4, 4] and list(summary.columns[:2]) == list(before.columns[:2])
