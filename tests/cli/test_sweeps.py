"""Sweeps that are killed, repeated and shared: nothing is lost, nothing is run twice."""

import json
import os
import shlex
import signal

import pytest

from tests.helpers.commands import Ended, run_foura
from tests.helpers.runs import children, start, statuses
from tests.helpers.survives import record
from tests.helpers.waiting import wait_until


def test_a_sweep_repeated_runs_what_is_missing_and_nothing_else(train) -> None:
    command = ("-m", "sweep=s", "adapter=head,foura_dct", "rank=choice(4,4096)", "dataset.limit=40", "dataset.epochs=1")
    first = train(*command)
    assert first.code == 1  # foura_dct at rank 4096 cannot work
    assert "sweep s: 1 failed, 3 finished" in first.out
    assert "rank 4096 is more than layer" in first.out
    before = statuses(first.outputs, "s")
    again = train(*command)
    assert again.code == 1
    assert "4 runs, 3 done, 1 to run" in again.out
    after = statuses(again.outputs, "s")
    assert {name for name in before if before[name] != after[name]} <= {
        name for name, status in before.items() if status["state"] == "failed"
    }
    assert len(children(again.outputs, "s")[1]) == 3
    forced = train(*command, "force=true")
    assert {name: status["run_id"] for name, status in statuses(forced.outputs, "s").items()} != {
        name: status["run_id"] for name, status in after.items()
    }
    parents, runs = children(forced.outputs, "s")
    assert len(parents) == 1 and len(runs) == 3
    started = [shlex.split(line) for line in parents[0].data.tags["command"].splitlines()]
    shown = ("python", "train.py", *command)
    assert [tuple(word for word in words if word in (*shown, "force=true")) for words in started] == [
        shown,
        (*shown, "force=true"),
    ]


def test_the_command_of_a_sweep_names_the_folder_that_its_configuration_is_in(train, tmp_path) -> None:
    """What a report prints to run more seeds can be run."""
    own = tmp_path / "my own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\ndataset: {limit: 40, epochs: 1}\n")
    command = ("experiment=mine", "sweep=s", "adapter=head", "rank=4")
    first = train("-m", f"--config-dir={own.parent}", *command)
    assert first.code == 0 and "1 finished" in first.out
    [parent], _ = children(first.outputs, "s")
    words = shlex.split(parent.data.tags["command"])
    assert words[:2] == ["python", "train.py"]
    again = train(*[word for word in words[2:] if not word.startswith("outputs=")])
    assert again.code == 0 and "1 runs, 1 done, 0 to run" in again.out


def test_a_plan_names_the_runs_of_the_folders_and_starts_nothing(train) -> None:
    command = ("-m", "sweep=s", "adapter=head,lora", "rank=4", "dataset.limit=40", "dataset.epochs=1")
    planned = train(*command, "plan=true", fresh=True)
    assert planned.code == 0
    assert "2 runs, 0 done, 2 to run: time and disk unknown" in planned.out
    assert not (planned.outputs / "mlflow.db").exists()
    train(*command)
    names = set(statuses(planned.outputs, "s"))
    assert len(names) == 2
    longer = train(*command[:3], "rank=4,8", *command[4:], "plan=true")
    assert all(f"  {name}" in longer.out for name in names)
    assert "4 runs, 2 done, 2 to run: about 0 min" in longer.out
    wrong = train(*command, "plan=true", "alpha=-1")
    assert "alpha must be above 0, got -1.0" in wrong.code and "\n" not in wrong.code


def test_a_diverged_run_is_a_result_and_is_counted(train) -> None:
    command = ("-m", "sweep=s", "adapter=lora", "optimizer.lr=1e-3,1e30", "rank=4", "dataset.limit=40", "seed=0,1")
    ended = train(*command, "dataset.epochs=2")
    assert ended.code == 0 and "loss became nan" in ended.out
    assert "2 diverged, 2 finished" in ended.out
    page = (ended.outputs / "sweeps" / "s" / "report" / "report.html").read_text()
    assert "4 runs: 2 finished, 2 diverged" in page or "4 runs: 2 diverged, 2 finished" in page
    assert "4 runs, 4 done, 0 to run" in train(*command, "dataset.epochs=2").out
    record("faults", "NaN loss", "2 of 4 runs, counted as diverged")


@pytest.mark.slow
def test_a_tuned_sweep_is_one_command_that_resumes(train) -> None:
    """Two rates at one tuning seed, then the better one is compared; what is missing afterwards is run again, and no more."""
    command = ("-m", "sweep=s", "adapter=head", "rank=4", "dataset.limit=40", "dataset.epochs=1", "tune=[adapter.lr]")
    command += ("adapter.lr=1e-5,1e-1", "tuning_seeds=[7]")
    planned = train(*command, "plan=true")
    assert "3 runs, 0 done, 3 to run" in planned.out
    assert any("adapter.lr=?" in line and "evaluation.test" not in line for line in planned.out.splitlines())
    first = train(*command)
    assert first.code == 0 and "at most 2 tuning runs (seeds 7), then 1 to compare; 0 done" in first.out
    assert "tuned the adapter: adapter.lr=0.1 (validation accuracy" in first.out
    assert "at the edge of its grid: widen it, as with adapter.lr=1000" in first.out
    assert "sweep s: 3 finished" in first.out and "on the validation data of seed 7," in first.out
    before = statuses(first.outputs, "s")
    tuning = [one["metrics"] for name, one in before.items() if "evaluation.test=false" in name]
    assert len(tuning) == 2 and not any(key.startswith("test/") for metrics in tuning for key in metrics)
    (compared,) = (name for name in before if "evaluation.test" not in name)
    assert "adapter.lr=0.1," in compared and "test/acc" in before[compared]["metrics"]
    lost = next(name for name in before if "adapter.lr=1e-05" in name)
    for name in (compared, lost):
        (first.outputs / "sweeps" / "s" / name / "status.json").unlink()
    again = train(*command)
    assert again.code == 0 and "sweep s: 3 finished" in again.out
    after = statuses(again.outputs, "s")
    assert [name for name in before if before[name]["run_id"] == after[name]["run_id"]] == [
        name for name in before if name not in (compared, lost)
    ]
    refused = train(*command[:-2], "adapter.lr=1e-3")
    assert "tune=[adapter.lr] needs several values to choose from" in refused.code
    other = train(*command, "hydra/sweeper=basic")
    assert "tune=['adapter.lr'] goes with hydra/sweeper=foura, the default" in other.code


def test_an_infinite_loss_is_a_diverged_run_too(train, monkeypatch) -> None:
    import torch

    infinite = torch.tensor(float("inf"), requires_grad=True)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *_, **__: infinite)
    ended = train("adapter=lora", "rank=4", "dataset.limit=40", "dataset.epochs=1")
    assert "the training loss became inf in epoch 0, step 0" in ended.code
    assert json.loads((ended.folder() / "status.json").read_text())["state"] == "diverged"
    record("faults", "infinite loss", "1 run, counted as diverged")


@pytest.mark.slow
def test_four_workers_on_a_fresh_store_lose_nothing(root, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    grid = ("adapter=head,lora", "seed=0,1,2,3", "rank=4", "dataset.limit=40", "dataset.epochs=2", "sweep=s")
    process = start(root, run_env, outputs, "hydra/launcher=joblib", "hydra.launcher.n_jobs=4", *grid)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert [status["state"] for status in statuses(outputs, "s").values()] == ["finished"] * 8
    parents, runs = children(outputs, "s")
    assert len(parents) == 1 and len(runs) == 8
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parents[0].info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    record("schedulers", "a sweep by joblib, 4 workers at a store that is not there yet", "8 runs")


@pytest.mark.slow
def test_submitit_runs_a_sweep_in_processes_of_its_own(root, run_env, tmp_path) -> None:
    outputs = tmp_path / "outputs"
    grid = ("adapter=head,lora", "rank=4", "dataset.limit=40", "dataset.epochs=2", "sweep=s")
    process = start(root, run_env, outputs, "hydra/launcher=submitit_local", *grid)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert [status["state"] for status in statuses(outputs, "s").values()] == ["finished"] * 2
    assert "report: " in said and len(children(outputs, "s")[0]) == 1
    record("schedulers", "a sweep by submitit_local", "2 runs")


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_finishes_by_the_same_command(root, run_env, tmp_path) -> None:
    """The committed study, smaller: kill -9 of the whole group while some runs are done and others are not."""
    outputs = tmp_path / "outputs"
    command = ("experiment=rank_sweep", "seed=range(2)", "rank=4,16", "dataset.epochs=4", "dataset.limit=60")
    process = start(root, run_env, outputs, *command)

    def in_the_middle() -> bool:
        states = [status["state"] for status in statuses(outputs, "rank_sweep").values()]
        return states.count("finished") >= 3 and "running" in states

    wait_until(in_the_middle, "3 finished runs and one that is running")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {name: one for name, one in statuses(outputs, "rank_sweep").items() if one["state"] == "finished"}
    assert 3 <= len(before) < 16
    again = start(root, run_env, outputs, *command)
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0, said
    assert "report: " in said
    after = statuses(outputs, "rank_sweep")
    assert [status["state"] for status in after.values()] == ["finished"] * 16
    assert all(after[name] == before[name] for name in before)
    parents, runs = children(outputs, "rank_sweep")
    assert len(parents) == 1
    assert len(runs) == len({run.data.tags["key"] for run in runs}) == 16
    record("faults", "kill -9 of a sweep in its middle", "16 runs, none twice")
    assert {run.info.run_id for run in runs} == {status["run_id"] for status in after.values()}


def test_status_and_report_say_which_sweeps_there_are(train) -> None:
    ended = train("-m", "sweep=one", "adapter=head", "dataset.limit=40", "dataset.epochs=1")

    def ask(*arguments: str) -> Ended:
        return run_foura(*arguments, outputs=ended.outputs)

    assert ask("status", "one").out.splitlines()[-1] == "1 started: 1 finished"
    for command in ("status", "report"):
        assert ask(command, "two").code.startswith("error: there is no sweep two in")
        assert "Sweeps there: one." in ask(command, "two").code
    assert ask("report", "one", "--outputs", "nowhere").code.startswith("error: there are no runs at ")
    assert not (ended.outputs.parent / "nowhere").exists()
