"""A family and its metrics from outside: a record in each registry and two YAML files, and nothing else is touched.

The family classifies points of the plane. It has a frozen model of two layers, data, a task, and two metrics of its own: one
that is better when greater, and one that is better when smaller.
"""

import os
import signal

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foura.backbone import Backbone, choose_targets
from foura.cli import main
from foura.data.draws import cut_at_random, draw_at_random, missing_shares
from foura.data.run_data import RunData
from foura.families import FAMILIES
from foura.families.family import Family, Parts
from foura.families.task import Task
from foura.metrics import ANSWER, COMPARED, EPOCH, METRICS, Metric
from tests.helpers.runs import children, client, scientific, status

POINTS, CLASSES = 240, 4
QUICK = ("backbone=points", "rank=2", "trainer.max_epochs=3", "trainer.enable_progress_bar=false")


class TinyNet(nn.Module):
    """Logits (S, CLASSES) of points (S, 2)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(points)))))


def backbone(cfg) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinyNet(cfg.options.get("width", 8)).requires_grad_(False)
    targets = choose_targets(model, cfg.target_modules, ("first", "second"), "head")
    return Backbone(model=model, targets=targets, head="head", new=("head",), body="")


def points(cfg, seed: int) -> RunData:
    """Four rings around the origin."""
    generator = torch.Generator().manual_seed(0)
    place = torch.randn(POINTS, 2, generator=generator)
    label = place.norm(dim=1).argsort().argsort() * CLASSES // POINTS
    missing = missing_shares(["train"], {"validation": cfg.val_fraction, "test": cfg.test_fraction})
    parts = cut_at_random(POINTS, {name: round(share * POINTS) for name, share in missing.items()}, cfg.split_seed)
    parts["train"] = parts["train"][draw_at_random(len(parts["train"]), cfg.limit, seed)]
    sets = {
        name: TensorDataset(place[torch.as_tensor(part)], label[torch.as_tensor(part)]) for name, part in parts.items()
    }
    sizes = {name: len(part) for name, part in parts.items()}
    return RunData(**sets, train_eval=sets["train"], sizes=sizes, fingerprint=f"rings {cfg.split_seed}")


class Rings(Task):
    """confidence: mean probability of the right class. brier: mean squared error of the probabilities."""

    metrics = ("loss", "confidence", "brier")

    def __init__(self, model: nn.Module, cfg) -> None:
        super().__init__(model, cfg)
        self.seen: dict[str, list[Tensor]] = {}

    def loss(self, batch) -> Tensor:
        place, label = batch
        return nn.functional.cross_entropy(self.model(place), label)

    def evaluate(self, name: str, batch) -> None:
        place, label = batch
        logits = self.model(place)
        right = nn.functional.one_hot(label, CLASSES)
        probability = logits.softmax(1)
        loss = nn.functional.cross_entropy(logits, label, reduction="none")
        values = torch.stack([loss, (probability * right).sum(1), (probability - right).square().sum(1)])
        self.seen.setdefault(name, []).append(values)

    def results(self, name: str) -> dict[str, float]:
        means = torch.cat(self.seen.pop(name), 1).mean(1).tolist()
        return dict(zip(self.metrics, means, strict=True))


def build(cfg) -> Parts:
    return Parts(backbone(cfg.backbone), points(cfg.dataset, cfg.seed), lambda model: Rings(model, cfg))


def save_merged(parts, model, cfg, out) -> None:
    out.mkdir()
    save_file(model.state_dict(), out / "model.safetensors")


FAMILY = Family(
    name="points",
    sources=("rings",),
    bundled=("rings",),
    formats={"points": ("confidence", "loss", "brier")},
    options=("width",),
    causal=False,
    build=build,
    save_merged=save_merged,
)
OWN = (
    Metric("confidence", "confidence", greater_is_better=True, shown=(EPOCH,)),
    Metric("brier", "Brier score", greater_is_better=False, shown=(EPOCH, COMPARED, ANSWER)),
)


@pytest.fixture
def run(train, tmp_path, monkeypatch):
    """train("…") with the family, the metrics and their YAML files registered."""
    monkeypatch.setitem(FAMILIES, FAMILY.name, FAMILY)
    for metric in OWN:
        monkeypatch.setitem(METRICS, metric.key, metric)
    for group, text in {
        "backbone/points": "family: points",
        "dataset/for_points": "name: rings\nsource: rings",
    }.items():
        path = tmp_path / "conf" / f"{group}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    search = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    return lambda *overrides, **options: train(*overrides, *QUICK, search, **options)


def test_a_run_of_a_family_from_outside(run) -> None:
    ended = run("adapter=foura_dct")
    found = status(ended)
    assert found["state"] == "finished" and "confidence train" in ended.out
    metrics = found["metrics"]
    assert {"test/confidence", "test/brier", "best/confidence", "final/gap_brier", "cost/adapter_mb"} <= metrics.keys()
    assert metrics["adapter/effective_rank"] == 2
    tags = client(ended.outputs).get_run(found["run_id"]).data.tags
    assert tags["backbone"] == "points" and tags["data_fingerprint"] == "rings 0"


def test_its_own_setting_makes_another_model_and_another_run(run) -> None:
    narrow, wide = status(run("adapter=lora")), status(run("adapter=lora", "+backbone.options.width=16", into="wide"))
    parameters = [found["metrics"]["cost/trainable_params"] for found in (narrow, wide)]
    assert parameters == [2 * (2 + 8 + 8 + 8) + 9 * CLASSES, 2 * (2 + 16 + 16 + 16) + 17 * CLASSES]
    assert narrow["key"] != wide["key"]


def test_what_the_family_does_not_have_is_refused_with_its_choices(run) -> None:
    assert "Its data: rings." in run("dataset=digits").code
    assert "choose confidence, loss, brier" in run("select=acc").code
    assert "options.depth is not a setting of backbone=points. It has: width." in run("+backbone.options.depth=3").code
    assert "for the bundled backbones alone" in run("evaluation.drift=true").code


def test_it_resumes_where_a_signal_stopped_it(run, monkeypatch) -> None:
    whole = run("adapter=foura", "adapter.dropout=0.2")
    expected = scientific(status(whole)["metrics"])
    loss, calls = Rings.loss, iter(range(10_000))

    def interrupted(self, batch):
        if next(calls) == 7:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, batch)

    monkeypatch.setattr(Rings, "loss", interrupted)
    stopped = run("adapter=foura", "adapter.dropout=0.2", "force=true")
    assert stopped.code == 128 + signal.SIGTERM and status(stopped)["state"] == "interrupted"
    monkeypatch.setattr(Rings, "loss", loss)
    resumed = run("adapter=foura", "adapter.dropout=0.2")
    assert status(resumed)["state"] == "finished"
    assert scientific(status(resumed)["metrics"]) == expected
    assert len(list(resumed.outputs.glob("runs/*"))) == 1


def test_it_is_exported_as_it_was_tested(run, tmp_path, monkeypatch) -> None:
    ended = run("adapter=foura_dct")
    folder = ended.folder()

    def export(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["foura", "export", str(folder), *arguments])
        main()

    export("--to", "merged", str(tmp_path / "merged"))
    model = TinyNet()
    model.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    place, label = points(OmegaConf.load(folder / "config.yaml").dataset, seed=0).test.tensors
    confidence = model(place).softmax(1).gather(1, label[:, None]).mean().item()
    assert confidence == pytest.approx(status(ended)["metrics"]["test/confidence"], abs=1e-6)
    export("--to", "lora", str(tmp_path / "lora"))
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    with pytest.raises(SystemExit, match="choose one of peft, merged, lora"):
        export("--to", "kohya", str(tmp_path / "kohya"))


@pytest.mark.parametrize("key", ["confidence", "brier"])
def test_its_metric_selects_the_epoch_by_its_direction(key, run, monkeypatch) -> None:
    """The validation metrics are scripted: the best epoch is neither the first nor the last."""
    script = {"confidence": [0.2, 0.9, 0.5], "brier": [0.5, 0.1, 0.3]}
    results = Rings.results

    def scripted(self, name: str) -> dict[str, float]:
        values = results(self, name)
        if name == "val":
            values |= {own: by_epoch[self.current_epoch] for own, by_epoch in script.items()}
        return values

    monkeypatch.setattr(Rings, "results", scripted)
    metrics = status(run("adapter=lora", f"select={key}"))["metrics"]
    assert metrics[f"best/{key}"] == script[key][1] and metrics[f"final/{key}"] == script[key][2]


def test_a_sweep_of_it_is_reported(run) -> None:
    """The linear probe is worse than LoRA in both metrics, though one of them is greater for it."""
    ended = run("-m", "sweep=s", "adapter=lora,head", "seed=0,1,2,3", "trainer.max_epochs=10")
    assert ended.code == 0, ended.out
    assert ended.out.count("finished, validation confidence 0.") == 8
    assert len(children(ended.outputs, "s")[1]) == 8
    report = ended.outputs / "sweeps" / "s" / "report"
    page = (report / "report.html").read_text()
    assert "points on rings" in page and "test confidence: of 1 comparison" in page and "test Brier score: of 1" in page
    for key, sign in (("confidence", -1), ("brier", 1)):
        (row,) = pd.read_csv(report / f"comparisons-test_{key}.csv").to_dict("records")
        assert row["adapter"] == "head" and row["verdict"] == "worse"
        assert sign * row["difference"] > 0
    summary = pd.read_csv(report / "summary.csv")
    assert {"val confidence", "test confidence", "test Brier score", "gap in confidence"} <= set(summary)
