"""Several processes at one run: one folder, one MLflow run, and the numbers that one process gives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.helpers.network import free_port
from tests.helpers.runs import children, start, statuses
from tests.helpers.survives import record
from tests.helpers.waiting import wait_until

CPU = ("trainer.accelerator=cpu", "trainer.devices=2")
VIT = ("rank=4", "dataset.limit=65", "dataset.epochs=2")  # the last batch has one item: nothing is left for rank 1
LLAMA = ("backbone=llama_small", "rank=4", "dataset.limit=33", "dataset.epochs=2", "dataset.eval_limit=20")
LLAMA += ("dataset.batch_size=8", "evaluation.passages=2")
UNET = ("backbone=unet", "rank=4", "dataset.limit=33", "dataset.epochs=2", "dataset.eval_limit=20")
UNET += ("evaluation.max_prompts=4", "evaluation.strengths=[1.0]", "evaluation.sampling_steps=3")
ROUNDING = 1e-4  # relative: float32 sums in another order, through some steps of training


def metrics(outputs: Path) -> dict[str, float]:
    (path,) = outputs.glob("runs/*/status.json")
    status = json.loads(path.read_text())
    assert status["state"] == "finished", status
    return {key: value for key, value in status["metrics"].items() if not key.startswith("cost/")}


def tracked(outputs: Path) -> list:
    store = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    return store.search_runs([store.get_experiment_by_name("foura").experiment_id])


@pytest.mark.parametrize(
    ("trainer", "choice"),
    [
        pytest.param("ddp", ("adapter=foura", *VIT), marks=pytest.mark.slow),
        pytest.param("ddp", ("adapter=adalora", *VIT), marks=pytest.mark.slow),
        pytest.param("ddp", ("adapter=sora", *VIT), marks=pytest.mark.slow),
        pytest.param("ddp", ("adapter=full", *VIT), marks=pytest.mark.slow),
        pytest.param("ddp", ("adapter=foura_dct_frozen", *VIT), marks=pytest.mark.slow),
        pytest.param("ddp", ("adapter=foura_dft", *VIT, "trainer.accumulate_grad_batches=2"), marks=pytest.mark.slow),
        pytest.param("ddp", ("adapter=foura", *LLAMA), marks=pytest.mark.slow),
        pytest.param("ddp", ("adapter=foura", *UNET), marks=pytest.mark.slow),
        pytest.param("fsdp", ("adapter=foura", *VIT), marks=pytest.mark.slow),
        pytest.param("fsdp", ("adapter=full", *VIT), marks=pytest.mark.slow),
        pytest.param("fsdp", ("adapter=lora", *VIT, "trainer.accumulate_grad_batches=2"), marks=pytest.mark.slow),
        pytest.param("fsdp", ("adapter=foura_dft", *LLAMA), marks=pytest.mark.slow),
        pytest.param("fsdp", ("adapter=dora", *LLAMA), marks=pytest.mark.slow),
        pytest.param("fsdp", ("adapter=foura", *UNET), marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]),
)
def test_two_processes_give_what_one_gives(trainer, choice, train) -> None:
    one, two = train(*choice, into="one"), train(*choice, f"trainer={trainer}", *CPU, into="two")
    assert one.code == two.code == 0, two.out
    expected = metrics(one.outputs)
    if trainer == "fsdp":
        del expected["drift/loss"]  # by default not measured where weights are sharded
    # a gap and what is forgotten are small differences of two losses, and round as they do
    small = {key for key in expected if "gap" in key or key.startswith("drift/")}
    scale = {key: ROUNDING * max(1.0, abs(value)) if key in small else None for key, value in expected.items()}
    found = metrics(two.outputs)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=ROUNDING, abs=scale[key]), key
    (run,) = tracked(two.outputs)
    history = MlflowClient(f"sqlite:///{two.outputs / 'mlflow.db'}").get_metric_history(run.info.run_id, "val/loss")
    assert run.info.status == "FINISHED" and [point.step for point in history] == [0, 1]
    record("processes", f"{trainer}: {' '.join(choice[:2])}", f"2 processes against 1, equal to {ROUNDING:g}")


@pytest.mark.slow
def test_torchrun_starts_a_run_and_a_sweep_starts_its_own(root, run_env, tmp_path, train) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(root / "train.py"), "adapter=foura", *VIT, "trainer=ddp", *CPU, f"outputs={tmp_path}/two"]
    ran = subprocess.run(command, env=run_env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("accuracy of the selected epoch") == 1  # one of them speaks
    expected = metrics(train("adapter=foura", *VIT, into="one").outputs)
    assert metrics(tmp_path / "two") == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    assert len(tracked(tmp_path / "two")) == 1
    wrong = subprocess.run(
        [*torchrun, str(root / "train.py"), "adapter=lora"],
        env=run_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode != 0
    assert wrong.stderr.count("error: 2 processes were started, and the config asks for 1") == 1
    sweep = train("-m", "sweep=s", "adapter=head,lora", *VIT, "trainer=ddp", *CPU)
    assert sweep.code == 0, sweep.out
    assert [status["state"] for status in statuses(sweep.outputs, "s").values()] == ["finished"] * 2
    assert len(children(sweep.outputs, "s")[0]) == 1
    record("processes", "torchrun, and ddp in a sweep", "3 runs of 2 processes")


@pytest.mark.slow
def test_two_launchers_of_one_process_each_meet_at_one_run(root, run_env, tmp_path, train) -> None:
    """As on two nodes with a shared disk: a torchrun on each, which knows of the other by its address alone."""
    meeting = f"127.0.0.1:{free_port()}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", "--rdzv-id=two", "--local-addr=127.0.0.1"]
    command = [*torchrun, str(root / "train.py"), "adapter=foura", *VIT, "trainer=ddp", "trainer.accelerator=cpu"]
    command += ["trainer.devices=1", "trainer.num_nodes=2", f"outputs={tmp_path}/two"]
    options = {"env": run_env, "cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(command, **options) for _ in range(2)]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "".join(said).count("accuracy of the selected epoch") == 1
    expected = metrics(train("adapter=foura", *VIT, into="one").outputs)
    assert metrics(tmp_path / "two") == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    assert len(tracked(tmp_path / "two")) == 1
    record("processes", "ddp: two launchers of one process each, as on two nodes", "1 run of 2 processes")


@pytest.mark.parametrize("trainer", [pytest.param(one, marks=pytest.mark.slow) for one in ("ddp", "fsdp")])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_processes_go_on_by_the_same_command(trainer, how, root, run_env, tmp_path, train) -> None:
    """SIGTERM to the command, as a scheduler sends it; SIGKILL to rank 1, as the system does when memory runs out."""
    choice = ("adapter=foura", "rank=4", "dataset.limit=200", "dataset.epochs=8", f"trainer={trainer}", *CPU)
    outputs = tmp_path / "killed"
    process = start(root, run_env, outputs, "sweep=s", *choice)
    wait_until(lambda: list(outputs.glob("sweeps/s/*/checkpoint.pt")), "the first checkpoint")
    if how == signal.SIGTERM:
        process.send_signal(how)
    else:
        ranks = subprocess.run(
            ["pgrep", "-f", f"foura.run.worker {outputs}"], capture_output=True, text=True, check=True
        )
        pids = ranks.stdout.split()
        (second,) = [pid for pid in pids if "\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_text()]
        os.kill(int(second), how)
    said, _ = process.communicate(timeout=200)
    (stopped,) = statuses(outputs, "s").values()
    if how == signal.SIGTERM:
        assert stopped["state"] == "interrupted" and process.returncode == 128 + how, said
    else:
        assert "process 1 of 2 was killed, as when memory runs out" in said and process.returncode == 1, said
    again = train("-m", "sweep=s", *choice, into="killed")
    assert again.code == 0, again.out
    (journal,) = outputs.glob("sweeps/s/*/tracking.jsonl")
    assert journal.read_text().count('"reopen"') == 1
    (status,) = statuses(outputs, "s").values()
    assert status["state"] == "finished" and status["run_id"] == stopped["run_id"]
    whole = train("-m", "sweep=s", *choice, into="whole")
    (expected,) = statuses(whole.outputs, "s").values()
    for key, value in expected["metrics"].items():
        if not key.startswith("cost/"):
            assert status["metrics"][key] == pytest.approx(value, rel=ROUNDING, abs=ROUNDING), key
    assert len(children(outputs, "s")[1]) == 1
    record(
        "processes", f"{trainer}: {how.name} to {'the command' if how == signal.SIGTERM else 'rank 1'}", "1 run resumes"
    )


def test_what_processes_cannot_have_is_said_at_once(train) -> None:
    def said(*choice: str) -> str:
        code = train("adapter=foura", *choice).code
        assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code
        return code

    assert "needs a strategy: trainer=ddp" in said("trainer.devices=2")
    assert "must be a number of processes per node" in said("trainer=ddp", "trainer.devices=auto")
    assert "start train.py with srun, or with torchrun" in said("trainer=ddp", "trainer.num_nodes=2")
    assert "it must be 4 or more" in said("trainer=ddp", "trainer.devices=4", "dataset.batch_size=2")
    assert "use trainer=ddp" in said("trainer=fsdp", *CPU, "adapter.gate=frozen")
