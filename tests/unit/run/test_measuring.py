"""After the last epoch: measuring in the precision of the training, and what is left where it fails."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.runs import children, client, scientific, status, statuses

VIT = ("adapter=foura", "rank=2", "dataset.limit=64", "trainer.max_epochs=2")
LLAMA = ("backbone=llama_small", "adapter=foura_dft", "rank=2", "dataset.limit=16", "dataset.eval_limit=8")
LLAMA += ("trainer.max_epochs=1", "evaluation.passages=2", "evaluation.drift=true")
UNET = ("backbone=unet", "adapter=foura_dct_frozen", "rank=2", "dataset.limit=26", "dataset.repeats=1")
UNET += ("dataset.eval_limit=26", "trainer.max_epochs=1", "evaluation.sampling_steps=2", "evaluation.max_prompts=2")
UNET += (
    "evaluation.drift=true",
    "evaluation.strengths=[0.5,1.0]",
    "evaluation.judge_every=1",
    "evaluation.pictures_every=1",
)
FAMILIES = {"vit": (*VIT, "dataset.label_noise=0.2", "evaluation.drift=true"), "llama_small": LLAMA, "unet": UNET}
SAVED = {"bf16-true": torch.bfloat16, "64-true": torch.float64, "bf16-mixed": torch.float32}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        ("vit", "bf16-true"),
        ("vit", "64-true"),
        pytest.param("vit", "bf16-mixed", marks=slow),
        pytest.param("llama_small", "bf16-true", marks=slow),
        pytest.param("llama_small", "64-true", marks=slow),
        pytest.param("llama_small", "bf16-mixed", marks=slow),
        ("unet", "bf16-true"),
        pytest.param("unet", "64-true", marks=slow),
        pytest.param("unet", "bf16-mixed", marks=slow),
    ],
)
def test_a_run_is_measured_in_the_precision_of_its_training(family, precision, train) -> None:
    ended = train(*FAMILIES[family], f"trainer.precision={precision}")
    assert ended.code == 0, ended.out
    found = status(ended)["metrics"]
    saved = load_file(ended.folder() / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {SAVED[precision]}
    exact = status(train(*FAMILIES[family], into="exact"))["metrics"]
    assert set(found) == set(exact)
    # autocast may lead a layer to compute in another order
    assert found["cost/step_gflops"] == pytest.approx(
        exact["cost/step_gflops"], rel=0.05 if "mixed" in precision else 0
    )
    assert found["test/loss"] == pytest.approx(exact["test/loss"], rel=0.03)
    assert found["adapter/delta_norm"] == pytest.approx(exact["adapter/delta_norm"], rel=0.1)


@pytest.mark.parametrize("family", ["vit", pytest.param("llama_small", marks=slow), pytest.param("unet", marks=slow)])
def test_half_precision_that_adamw_cannot_have_is_explained(family, train) -> None:
    ended = train(*FAMILIES[family], "trainer.precision=16-true")
    assert "loss became nan" in ended.code and "AdamW's epsilon (1e-8) in float16, where it is 0" in ended.code
    assert ended.code.endswith("use 16-mixed or bf16-true.") and "\n" not in ended.code
    assert status(ended)["state"] == "diverged"


def fail(*_: object) -> float:
    raise RuntimeError("a bug in measuring")


@pytest.mark.parametrize(
    ("adapter", "place"),
    [
        ("foura", "foura.run.run.step_gflops"),
        ("foura_dct_frozen", "foura.run.run.layer_table"),
        ("sora", "foura.run.run.draw"),
    ],
)
def test_a_run_whose_measuring_failed_only_measures_again(adapter, place, train, monkeypatch, tmp_path) -> None:
    command, outputs = (*VIT, f"adapter={adapter}"), tmp_path / "outputs"
    steps: list[int] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **options: steps.append(1) or step(*args, **options))
    with monkeypatch.context() as broken:
        broken.setattr(place, fail)
        for _ in range(2):  # the second command fails too, and keeps what the first one has trained
            with pytest.raises(RuntimeError, match="a bug in measuring"):
                train(*command)
            trained = len(steps)
    (folder,) = (outputs / "runs").iterdir()
    failed = json.loads((folder / "status.json").read_text())
    assert failed["state"] == "failed" and trained == 4
    assert (folder / "checkpoint.pt").is_file() and (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert client(outputs).get_run(failed["run_id"]).info.status == "FAILED"
    again = train(*command)
    assert again.code == 0 and "resumes after epoch 2 (force=true starts anew)" in again.out, again.out
    assert len(steps) == trained
    found = status(again)
    assert found["state"] == "finished" and found["run_id"] == failed["run_id"] and "error" not in found
    assert not (folder / "checkpoint.pt").exists()
    assert client(outputs).get_run(found["run_id"]).info.status == "FINISHED"
    expected = status(train(*command, into="whole"))["metrics"]
    assert scientific(found["metrics"]) == scientific(expected)
    assert found["metrics"]["cost/step_gflops"] == expected["cost/step_gflops"]


def test_a_sweep_measures_again_the_run_whose_measuring_failed(train, monkeypatch, tmp_path) -> None:
    command, outputs = ("-m", "sweep=s", *VIT[1:], "adapter=lora,foura_dct"), tmp_path / "outputs"

    def fail_in_second(task: object, batch: object) -> float:
        return 1.0 if len(statuses(outputs, "s")) == 1 else fail()

    with monkeypatch.context() as broken:
        broken.setattr("foura.run.run.step_gflops", fail_in_second)
        first = train(*command)
    assert first.code == 1 and "RuntimeError: a bug in measuring (traceback: " in first.out
    assert "sweep s: 1 failed, 1 finished" in first.out
    again = train(*command)
    assert again.code == 0 and "2 runs, 1 done, 1 to run" in again.out
    assert "foura_dct r2 seed 0: resumes after epoch 2" in again.out
    assert len(children(outputs, "s")[1]) == 2


def test_force_starts_a_failed_run_anew(train, monkeypatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("foura.run.run.step_gflops", fail)
        with pytest.raises(RuntimeError, match="a bug in measuring"):
            train(*VIT)
    forced = train(*VIT, "force=true")
    assert forced.code == 0 and "resumes" not in forced.out
