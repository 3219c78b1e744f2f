"""Methods from outside: a class and a line in the registry, or for what PEFT ships a YAML file alone."""

import json

import pytest
import torch

from foura.methods import METHODS
from foura.methods.lora import Lora
from tests.helpers.runs import status

QUICK = (
    "rank=2",
    "dataset.limit=64",
    "dataset.batch_size=32",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
)


class Decayed(Lora):
    """LoRA with a term of its own, the squared size of B, and a count of its steps that a checkpoint keeps."""

    def __init__(self) -> None:
        super().__init__("decayed")
        self.losses: list[float] = []
        self.loaded: list[int] = []
        self.steps = 0

    def loss(self, model):
        squares = [p.square().sum() for name, p in model.named_parameters() if "lora_B" in name]
        term = 10.0 * torch.stack(squares).sum()
        self.losses.append(float(term))
        return term

    def after_step(self, model, step, adapter, lr) -> None:
        self.steps = step

    def state(self, model):
        return {"steps": self.steps}

    def load_state(self, model, state) -> None:
        self.loaded.append(state["steps"])

    def tags(self, adapter):
        return {"transform": "none", "gate": "none"}


@pytest.fixture
def adapter(train, tmp_path):
    """adapter(name, yaml, *overrides): a run with a YAML file that lies outside."""

    def run(name: str, yaml: str, *overrides: str):
        path = tmp_path / "conf" / "adapter" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml)
        return train(f"adapter={name}", *QUICK, f"hydra.searchpath=[file://{tmp_path / 'conf'}]", *overrides)

    return run


def test_a_method_from_outside_has_its_own_loss_and_state(adapter, monkeypatch) -> None:
    method = Decayed()
    monkeypatch.setitem(METHODS, "decayed", method)
    ended = adapter("decayed", "name: decayed\nmethod: decayed")
    assert ended.code == 0, ended.out
    assert method.steps == 4 and len(method.losses) >= 4
    assert method.losses[0] == 0.0 and max(method.losses) > 0.0  # B starts at zero
    assert status(ended)["metrics"]["adapter/effective_rank"] == 2.0
    saved = json.loads((ended.folder() / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA" and saved["r"] == 2


def test_its_state_comes_back_when_a_run_resumes(adapter, monkeypatch) -> None:
    method = Decayed()
    monkeypatch.setitem(METHODS, "decayed", method)
    with monkeypatch.context() as patch:
        patch.setattr("foura.run.recorder.Recorder.restore", lambda *_: (_ for _ in ()).throw(SystemExit(143)))
        assert adapter("decayed", "name: decayed\nmethod: decayed").code == 143
    again = adapter("decayed", "name: decayed\nmethod: decayed")
    assert again.code == 0 and "resumes after epoch 2" in " ".join(again.out.split())
    assert method.loaded == [4]


@pytest.mark.parametrize("peft_type", ["DELORA", "HRA"])
def test_a_method_that_peft_ships_needs_a_yaml_file_alone(peft_type, adapter) -> None:
    ended = adapter("further", f"name: further\nmethod: peft\noptions:\n  peft_type: {peft_type}")
    assert ended.code == 0, ended.out
    metrics = status(ended)["metrics"]
    assert metrics["cost/trainable_params"] > 0 and metrics["adapter/delta_norm"] > 0
    saved = json.loads((ended.folder() / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == peft_type and saved["r"] == 2
