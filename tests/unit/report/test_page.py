"""The report on synthetic sweeps: what it says follows from the numbers, and it works on 2 runs and on 500."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foura.errors import UserError
from foura.report import compare
from foura.report.collect import load_sweep
from foura.report.page import report
from foura.tracking.store import open_store, parent_run
from foura.tracking.tracked_run import start_run


@pytest.fixture(autouse=True)
def _store(tmp_path, empty_store) -> None:
    shutil.copy(empty_store, tmp_path)


def synthetic(outputs: Path, sweep: str, runs, tune=(), epochs: int = 3) -> None:
    """runs: (adapter, config, seed, test accuracy, validation accuracy, state) of each."""
    parent_run(outputs, sweep, command="python train.py -m …", tune=tune)
    for adapter, config, seed, test, val, state in runs:
        params = {"backbone.family": "vit", "dataset.format": "None", "seed": seed, "adapter.name": adapter, **config}
        tags = {"sweep": sweep, "adapter": adapter, "backbone": "vit", "dataset": "digits", "seed": seed}
        tags |= {"rank": config.get("rank", 4), "data_fingerprint": f"f{seed}"}
        folder = outputs / "sweeps" / sweep / f"{adapter} {config} {seed}"
        folder.mkdir(parents=True)
        run = start_run(
            outputs, folder, f"{adapter} {seed}", params, {**tags, "key": folder.name.replace("'", "")}, sweep
        )
        for epoch in range(epochs):
            run.log_metrics({"train_eval/acc": val + 0.05, "val/acc": val, "gap/acc": 0.05}, step=epoch)
        if state == "finished":
            run.log_metrics(
                {
                    "test/acc": test,
                    "test/loss": 1 - test,
                    "best/acc": val,
                    "best/loss": 1 - val,
                    "final/loss": 1.1 - val,
                    "final/gap_acc": 0.05,
                    "final/gap_loss": 0.1,
                    "cost/trainable_params": 1000.0,
                    "cost/step_time_ms": 5.0,
                }
            )
        run.close(state)


def grid(better: float, seeds: int = 5, ranks=(4, 16)):
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        level = rng.normal(0.9, 0.02)
        for rank in ranks:
            for adapter in ("lora", "foura"):
                value = level + (better if adapter == "foura" else 0.0) + rng.normal(0, 0.002)
                yield adapter, {"rank": rank}, seed, value, value, "finished"


@pytest.mark.parametrize(
    ("difference", "verdict"), [(0.03, "better"), (-0.03, "worse"), (0.0, "no detectable difference")]
)
def test_the_verdict_is_that_of_the_numbers(difference, verdict, tmp_path) -> None:
    synthetic(tmp_path, "s", grid(difference))
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert f"of 2 comparisons with lora: 2 {verdict}" in page
    rows = list(csv.DictReader((tmp_path / "sweeps/s/report/comparisons-test_acc.csv").open()))
    assert [row["verdict"] for row in rows] == [verdict] * 2
    assert [int(row["rank"]) for row in rows] == [4, 16]
    sources = re.findall(r'(?:src|href)="([^"]{1,40})', page)
    assert sources and all(source.startswith(("data:", "http://127.0.0.1:5000/#/experiments/")) for source in sources)
    client, _ = open_store(tmp_path)
    parent = load_sweep(tmp_path, "s").parent_id
    assert "report/report.html" in [item.path for item in client.list_artifacts(parent, "report")]


def test_two_runs_are_enough_for_a_page_and_too_few_for_a_verdict(tmp_path) -> None:
    synthetic(tmp_path, "s", [("lora", {}, 0, 0.9, 0.9, "finished"), ("foura", {}, 0, 0.8, 0.8, "finished")])
    assert "1 too few seeds" in report(tmp_path, "s").read_text(encoding="utf-8")


def test_what_did_not_finish_is_counted_and_not_averaged(tmp_path) -> None:
    runs = [*grid(0.0), ("foura", {"rank": 64}, 0, 0, 0.1, "diverged"), ("lora", {"rank": 64}, 0, 0.9, 0.9, "finished")]
    synthetic(tmp_path, "s", [*runs, ("foura", {"rank": 4}, 7, 0, 0.1, "failed")])
    (study,) = compare.studies(load_sweep(tmp_path, "s").runs, [])
    table = compare.summary(study).set_index(["adapter", "rank"])
    assert table.loc[("foura", 64), "diverged"] == 1 and table.loc[("foura", 64), "seeds"] == 0
    assert table.loc[("foura", 4), "failed"] == 1 and table.loc[("foura", 4), "seeds"] == 5
    report(tmp_path, "s")


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_an_adapter_of_which_nothing_finished_yet_is_no_reason_for_no_page(state, tmp_path) -> None:
    synthetic(tmp_path, "s", [("lora", {}, 0, 0.9, 0.9, "finished"), ("foura", {}, 0, 0.8, 0.8, state)])
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert f"2 runs: 1 finished, 1 {state}" in page or f"2 runs: 1 {state}, 1 finished" in page


def test_a_tuned_key_is_picked_on_validation_and_never_on_test(tmp_path) -> None:
    """lr 1e-3 is best on validation, 1e-2 on test; one that diverged for a seed cannot win."""
    runs = []
    for seed in range(3):
        noise = 0.001 * seed
        for adapter in ("lora", "foura"):
            runs += [
                (adapter, {"adapter.lr": 1e-4, "optimizer.lr": 1e-4}, seed, 0.5 + noise, 0.70 + noise, "finished"),
                (adapter, {"adapter.lr": 1e-3, "optimizer.lr": 1e-3}, seed, 0.6 + noise, 0.80 + noise, "finished"),
                (adapter, {"adapter.lr": 1e-2, "optimizer.lr": 1e-2}, seed, 0.9 + noise, 0.75 + noise, "finished"),
                (
                    adapter,
                    {"adapter.lr": 1.0, "optimizer.lr": 1.0},
                    seed,
                    0.9,
                    0.99,
                    "diverged" if seed else "finished",
                ),
            ]
    synthetic(tmp_path, "s", runs, tune=["adapter.lr"])
    sweep = load_sweep(tmp_path, "s")
    assert sweep.tune == ["adapter.lr"]
    (study,) = compare.studies(sweep.runs, sweep.tune)
    assert study.tuned["adapter.lr"].tolist() == [1e-3, 1e-3]
    assert study.tuned["did not finish"].tolist() == [2, 2]
    assert study.conditions == []  # optimizer.lr follows adapter.lr
    assert study.finished["test/acc"].max() < 0.7


def test_an_unknown_sweep_names_those_there_are(tmp_path) -> None:
    synthetic(tmp_path, "s", [("lora", {}, 0, 0.9, 0.9, "finished")])
    with pytest.raises(UserError, match="Sweeps there: s"):
        report(tmp_path, "t")


@pytest.mark.slow
def test_500_runs_in_a_gigabyte(tmp_path) -> None:
    runs = [
        (adapter, {"rank": rank}, seed, 0.9 + 0.001 * seed, 0.9, "finished")
        for adapter in ("lora", "foura", "foura_dct", "foura_dft", "dora")
        for rank in (1, 2, 4, 8, 16, 32, 64, 96, 112, 128)
        for seed in range(10)
    ]
    synthetic(tmp_path, "s", runs, epochs=10)
    # not getrusage: its maximum includes that of the process that started this one
    code = "import re; from foura.cli import main; main(); "
    code += r"print(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])"
    command = [sys.executable, "-c", code, "report", "s", "--outputs", str(tmp_path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    megabytes = int(answer.stdout.split()[-1]) / 1024
    assert megabytes < 1000
    assert (tmp_path / "sweeps/s/report/report.html").stat().st_size < 5e6
