"""The report of synthetic sweeps: its page follows from the numbers, for 2 runs and for 500."""

import csv
import html
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from foura.errors import UserError
from foura.report.collect import load_sweep
from foura.report.page import Section, report
from foura.report.study import studies
from foura.tracking.store import open_store, parent_run
from tests.helpers.sweeps import COMMAND, grid, synthetic


@pytest.fixture(autouse=True)
def _store(tmp_path, empty_store) -> None:
    shutil.copy(empty_store, tmp_path)


@pytest.mark.parametrize(("difference", "verdict"), [(0.03, "better"), (-0.03, "worse"), (0.0, "equivalent")])
def test_the_verdict_is_that_of_the_numbers(difference, verdict, tmp_path) -> None:
    synthetic(tmp_path, "s", grid(difference), items=1000)
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert f"test accuracy: of 2 comparisons with lora: 2 {verdict}." in page
    rows = list(csv.DictReader((tmp_path / "sweeps/s/report/comparisons-test_acc.csv").open()))
    assert [row["verdict"] for row in rows] == [verdict] * 2
    assert [int(row["rank"]) for row in rows] == [4, 16]
    sources = re.findall(r'(?:src|href)="([^"]{1,40})', page)
    assert sources and all(source.startswith(("data:", "http://127.0.0.1:5000/#/experiments/")) for source in sources)
    client, _ = open_store(tmp_path)
    logged = [item.path for item in client.list_artifacts(load_sweep(tmp_path, "s").parent_id, "report")]
    assert {"report/report.html", "report/forest-test_acc.svg", "report/means-test_acc.svg"} <= set(logged)


def test_the_forest_plot_comes_before_every_other_figure(tmp_path) -> None:
    synthetic(tmp_path, "s", grid(0.03))
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert (
        page.index("difference from lora. ")
        < page.index("test accuracy against rank")
        < page.index("accuracy (rank 4) by")
    )
    assert "foura, rank 4: better; foura, rank 16: better" in page  # for screen readers


def test_epochs_are_counted_from_1(tmp_path) -> None:
    synthetic(tmp_path, "s", [("lora", {}, 0, 0.9, 0.8, "finished")], epochs=3)
    sweep = load_sweep(tmp_path, "s")
    assert sweep.history(sweep.runs["run_id"][0], "val/acc").to_dict() == {1: 0.8, 2: 0.8, 3: 0.8}


@pytest.mark.parametrize(("key", "gap"), [("acc", 0.3), ("loss", -0.3)])
def test_the_gap_of_an_epoch_is_how_much_worse_validation_is(key, gap) -> None:
    """0.9 on training data and 0.6 on validation data, which is worse as an accuracy and better as a loss."""
    values = {f"train_eval/{key}": 0.9, f"val/{key}": 0.6}
    section = Section.__new__(Section)
    section.study = SimpleNamespace(
        selection=SimpleNamespace(column=f"best/{key}"), finished=pd.DataFrame({"run_id": ["a"]})
    )
    section.sweep = SimpleNamespace(history=lambda run_id, metric: pd.Series({1: values[metric]}))
    (row,) = section._histories().to_dict("records")
    assert row["gap"] == pytest.approx(gap) and (row["train"], row["val"], row["epoch"]) == (0.9, 0.6, 1)


def test_two_runs_are_enough_for_a_page_and_too_few_for_a_verdict(tmp_path) -> None:
    synthetic(tmp_path, "s", [("lora", {}, 0, 0.9, 0.9, "finished"), ("foura", {}, 0, 0.8, 0.8, "finished")])
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert "1 undecided" in page and "1 shared seed; 3 are the least" in page


def test_one_adapter_has_nothing_to_be_compared_with(tmp_path) -> None:
    synthetic(tmp_path, "s", [("lora", {}, seed, 0.9, 0.9, "finished") for seed in range(3)])
    assert "there is nothing to compare with lora yet: one adapter" in report(tmp_path, "s").read_text(encoding="utf-8")


def test_seeds_of_one_adapter_alone_are_left_out_and_named(tmp_path) -> None:
    runs = [*grid(0.03), ("foura", {"rank": 4}, 7, 0.1, 0.1, "finished")]
    synthetic(tmp_path, "s", runs)
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert "5 shared seeds, without 7, which one of both has" in page and "2 better" in page


def test_a_sweep_of_which_every_run_diverged_has_a_page_that_says_so(tmp_path) -> None:
    synthetic(
        tmp_path, "s", [(name, _rates(lr), 0, 0, 0.1, "diverged") for name in ("lora", "foura") for lr in (0.1, 1.0)]
    )
    path = report(tmp_path, "s")
    page = path.read_text(encoding="utf-8")
    said = "Every run diverged (adapter.lr 0.1, 1), so there is nothing to compare: a lower adapter.lr or"
    assert "4 runs: 4 diverged" in page and said in page
    assert (path.parent / "verdicts.txt").read_text(encoding="utf-8").startswith(said)


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_an_adapter_without_a_finished_run_does_not_prevent_the_page(state, tmp_path) -> None:
    synthetic(tmp_path, "s", [("lora", {}, 0, 0.9, 0.9, "finished"), ("foura", {}, 0, 0.8, 0.8, state)])
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert f"2 runs: 1 finished, 1 {state}" in page or f"2 runs: 1 {state}, 1 finished" in page


def test_a_tuned_key_is_picked_on_validation_and_never_on_test(tmp_path) -> None:
    """lr 1e-3 is best on validation, 1e-2 on test; 1.0, which diverged for two seeds, cannot win."""
    runs = []
    for seed in range(3):
        noise = 0.001 * seed
        for adapter in ("lora", "foura"):
            for lr, test, val in ((1e-4, 0.5, 0.70), (1e-3, 0.6, 0.80), (1e-2, 0.9, 0.75)):
                runs.append((adapter, _rates(lr), seed, test + noise, val + noise, "finished"))
            runs.append((adapter, _rates(1.0), seed, 0.9, 0.99, "diverged" if seed else "finished"))
    synthetic(tmp_path, "s", runs, tune=["adapter.lr"])
    sweep = load_sweep(tmp_path, "s")
    assert sweep.tune == ["adapter.lr"]
    (study,) = studies(sweep.runs, sweep.tune)
    assert study.tuned["adapter.lr"].tolist() == [1e-3, 1e-3]
    assert study.tuned["did not finish"].tolist() == [2, 2]
    assert study.conditions == []  # optimizer.lr follows adapter.lr
    assert study.finished["test/acc"].max() < 0.7
    assert "Tuned values" in report(tmp_path, "s").read_text(encoding="utf-8")


def test_tuning_runs_choose_the_rate_and_are_compared_with_nothing(tmp_path) -> None:
    """By the tuning runs lora is best at 1e-2, the edge, though its compared runs are better at 1e-3, on all data."""
    runs = []
    for seed in range(3):
        noise = 0.001 * seed
        for adapter, best in (("lora", 1e-2), ("foura", 1e-3)):
            for lr in (1e-4, 1e-3, 1e-2):
                val = 0.8 if lr == best else 0.4
                runs.append((adapter, _rates(lr) | UNTESTED, 1000 + seed, 0.99, val + noise, "finished"))
                if lr > 1e-4:
                    runs.append((adapter, _rates(lr), seed, 0.6 - lr + noise, 0.6 - lr, "finished"))
    lost = [("oft", _rates(lr) | UNTESTED, 1000, 0.0, 0.0, "diverged") for lr in (1e-4, 1e-3, 1e-2)]
    synthetic(tmp_path, "s", [*runs, *lost], tune=["adapter.lr"])
    path = report(tmp_path, "s")
    page = path.read_text(encoding="utf-8")
    assert "12 runs: 12 finished; before them 21 tuning runs" in page
    said = (path.parent / "verdicts.txt").read_text(encoding="utf-8").splitlines()[-3:]
    assert said == [
        "  adapter.lr was tuned for each adapter and condition on the validation data of seeds 1000, 1001, 1002, which the "
        "comparison does not use.",
        "  Best at the edge of the grid of adapter.lr: lora (lr 0.01). Better values may lie beyond: widen it with 0.1.",
        "  Left out, as every run to choose from diverged or failed: oft.",
    ]
    assert all(line.strip() in page for line in said)
    tuned = pd.read_csv(path.parent / "tuned.csv").set_index("adapter")
    assert tuned["adapter.lr"].to_dict() == {"lora": 0.01, "foura": 0.001}
    assert tuned.loc["lora", "val accuracy"] == pytest.approx(0.801)
    (row,) = pd.read_csv(path.parent / "comparisons-test_acc.csv").to_dict("records")
    assert row["difference"] == pytest.approx(0.009) and row["seeds"] == 3
    assert (pd.read_csv(path.parent / "runs.csv")["seed"] < 1000).all()
    assert len(pd.read_csv(path.parent / "tuning.csv")) == 21


def test_a_rank_with_a_rate_of_its_own_stays_a_condition(tmp_path) -> None:
    """Each rank was compared at one rate, so that in the compared runs the rank follows from the rate."""
    best = {4: 1e-2, 16: 1e-3}
    runs = [
        (adapter, _rates(lr) | {"rank": rank} | more, seed, 0.5, 0.8 if lr == best[rank] else 0.4, "finished")
        for adapter in ("lora", "foura")
        for rank in (4, 16)
        for lr in (1e-3, 1e-2)
        for seed, more in ((1000, UNTESTED), (0, {}), (1, {}), (2, {}))
        if more or lr == best[rank]
    ]
    synthetic(tmp_path, "s", runs, tune=["adapter.lr"])
    sweep = load_sweep(tmp_path, "s")
    (study,) = studies(sweep.runs, sweep.tune, sweep.margins, sweep.tuning)
    assert study.conditions == ["rank"] and len(study.finished) == 12
    assert study.tuned.groupby("rank")["adapter.lr"].unique().str[0].to_dict() == best


UNTESTED = {"evaluation.test": False}


def _rates(lr: float) -> dict[str, float]:
    return {"adapter.lr": lr, "optimizer.lr": lr}


def test_a_declared_margin_is_used_and_kept_with_the_sweep(tmp_path) -> None:
    """Differences of 0.002: equivalent within the default of ±0.01, and not within ±0.0005."""
    synthetic(tmp_path, "s", grid(0.0), margins={"acc": 0.0005, "loss": None})
    assert load_sweep(tmp_path, "s").margins == {"acc": 0.0005}
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert "2 undecided" in page and "Equivalent means within ±0.0005 in test accuracy" in page


def test_looks_are_counted_and_their_price_is_named(tmp_path) -> None:
    synthetic(tmp_path, "s", grid(0.0, range(3)))
    assert "the error rates hold as stated" in report(tmp_path, "s").read_text(encoding="utf-8")
    report(tmp_path, "s")  # the same runs: no further look
    synthetic(tmp_path, "s", grid(0.0, range(3, 5)), margins={"acc": 0.05})
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    assert "looked at 2 times (with 12, 20 finished runs)" in page and "but in up to 10% of sweeps" in page
    assert "The declared margins were other ones before" in page
    client, _ = open_store(tmp_path)
    looks = json.loads(client.get_run(parent_run(tmp_path, "s")).data.tags["looks"])
    assert looks == [{"finished": 12, "margins": {}}, {"finished": 20, "margins": {"acc": 0.05}}]


def test_an_undecided_sweep_names_the_seeds_and_the_command_that_decide(tmp_path) -> None:
    synthetic(tmp_path, "s", grid(0.0, range(3)), margins={"acc": 0.004})
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    found = re.search(r"About (\d+) seeds \(now 3\) would decide (?:the undecided one|\d of the \d undecided) in", page)
    assert found and int(found[1]) > 3
    assert COMMAND.replace("seed=0,1,2,3,4", f"&#39;seed=range({found[1]})&#39;") in page


def test_a_sweep_that_was_run_in_parts_names_the_command_of_each(tmp_path) -> None:
    """Those that differ in their seeds alone are one command with more seeds."""
    lora, foura = "python train.py -m sweep=s adapter=lora", "python train.py -m sweep=s adapter=foura,dora"
    for command in (f"{lora} seed=0,1,2", f"{foura} seed=0,1", f"{foura} seed=2", f"{lora} seed=0,1,2"):
        synthetic(tmp_path, "s", [], command=command)
    synthetic(tmp_path, "s", grid(0.0, range(3)), margins={"acc": 0.004}, command=f"{foura} seed=0,1,2")
    page = html.unescape(report(tmp_path, "s").read_text(encoding="utf-8"))
    (count,) = re.findall(r"About (\d+) seeds \(now 3\)", page)
    assert f"<code>{foura} 'seed=range({count})'\n{lora} 'seed=range({count})'</code>" in page
    rows = re.findall(r"<td>command</td><td>([^<]*)</td>", page)
    assert rows == [f"{foura} seed=0,1", f"{foura} seed=2", f"{lora} seed=0,1,2", f"{foura} seed=0,1,2"]


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


def test_image_metrics_by_adapter_scale_are_shown_without_a_click(tmp_path) -> None:
    synthetic(tmp_path, "s", grid(0.0, range(2), ranks=[4]))
    client, experiment = open_store(tmp_path)
    (tmp_path / "strengths.csv").write_text("strength,kernel,lpips,unheard\n0.5,2.0,0.3,1\n1.0,1.0,0.2,1\n")
    for run in client.search_runs([experiment], "tags.role = 'run'"):
        client.log_artifact(run.info.run_id, str(tmp_path / "strengths.csv"))
    page = report(tmp_path, "s").read_text(encoding="utf-8")
    opened = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    shown = [alt for alt in re.findall(r'alt="([^"]*)"', opened) if "by adapter scale" in alt]
    assert "Generated images" in opened and len(shown) == 2  # of the metrics that the framework knows
    assert shown[0].startswith("kernel distance") and shown[1].startswith("LPIPS diversity")
