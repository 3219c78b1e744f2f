"""The tracking server that labs run, MLflow on PostgreSQL with an artifact store: eight workers, a restart in the middle."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.helpers.network import answers, free_port
from tests.helpers.runs import start, statuses
from tests.helpers.survives import record
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow
WORKERS = 8
GRID = ("sweep=s", "adapter=head,lora", "seed=range(8)", "rank=4", "dataset.limit=40", "dataset.epochs=8")
RUNS = 16
DOWN = 10.0  # seconds


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs; Debian's package is installed where it is missing and may be."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "postgresql"], check=True, stdout=subprocess.DEVNULL)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here, and no right to install it: apt install postgresql")
    return found[-1].parent


class Postgres:
    """A server of its own in a folder; it refuses to run as root, so then it is the user postgres that runs it."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.folder, self.port = postgres_programs(), folder, free_port()
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        self._do("initdb", "-D", str(folder / "data"), "-U", "lab", "--auth=trust")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self._do(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self) -> None:
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def _do(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=self.folder, check=False)
        assert ended.returncode == 0, (self.folder / "log").read_text()


class Server:
    """`mlflow server` on it, with artifacts in a folder of the server's."""

    def __init__(self, postgres: Postgres, artifacts: Path) -> None:
        self.port, self.log = free_port(), artifacts.with_suffix(".log")
        self.uri = f"http://127.0.0.1:{self.port}"
        store = f"postgresql://lab@127.0.0.1:{postgres.port}/postgres"
        self.command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "2"]
        self.command += ["--artifacts-destination", str(artifacts), "--host", "127.0.0.1", "--port", str(self.port)]
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.log, "ab") as log:
            told = {"stdout": log, "stderr": log}
            self.process = subprocess.Popen(self.command, env=environment, start_new_session=True, **told)
        wait_until(lambda: self.process.poll() is not None or answers(f"{self.uri}/health"), "the server's answer")
        assert self.process.poll() is None, self.log.read_text()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """In a folder of its own: every other pytest that starts closes the folder of pytest's to the user postgres."""
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        running = Postgres(Path(folder) / "server")
        yield running
        running.stop()


@pytest.fixture
def server(postgres, tmp_path) -> Iterator[Server]:
    running = Server(postgres, tmp_path / "artifacts")
    yield running
    running.kill()


def test_eight_workers_lose_nothing_when_the_server_and_its_database_restart(
    postgres, server, root, run_env, tmp_path
) -> None:
    outputs = tmp_path / "outputs"
    environment = {**run_env, "MLFLOW_TRACKING_URI": server.uri}
    parallel = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={WORKERS}")
    sweep = start(root, environment, outputs, *parallel, *GRID)

    def finished() -> int:
        return [one["state"] for one in statuses(outputs, "s").values()].count("finished")

    wait_until(lambda: finished() >= 2, "two finished runs", seconds=600)
    assert finished() < RUNS
    server.kill()
    postgres.stop()  # as if the power failed
    time.sleep(DOWN)
    postgres.start()
    server.start()
    said, _ = sweep.communicate(timeout=900)
    assert sweep.returncode == 0, said
    sync = subprocess.run(
        [sys.executable, "-m", "foura", "sync", str(outputs)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert sync.returncode == 0, sync.stderr
    after = statuses(outputs, "s")
    assert [one["state"] for one in after.values()] == ["finished"] * RUNS
    store = MlflowClient(server.uri)
    experiment = store.get_experiment_by_name("foura").experiment_id
    found = store.search_runs([experiment], filter_string="tags.sweep = 's'")
    parents = [run for run in found if run.data.tags["role"] == "sweep"]
    runs = [run for run in found if run.data.tags["role"] == "run"]
    assert len(parents) == 1 and len(runs) == RUNS
    assert {run.info.run_id for run in runs} == {one["run_id"] for one in after.values()}
    told = {one["run_id"]: one["metrics"] for one in after.values()}
    for run in runs:
        assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        steps = [point.step for point in store.get_metric_history(run.info.run_id, "val/loss")]
        assert steps == list(range(8)), steps
        metrics = told[run.info.run_id]
        assert {key: run.data.metrics[key] for key in metrics} == pytest.approx(metrics)
        assert {"adapter", "config.yaml", "curves.png"} <= {item.path for item in store.list_artifacts(run.info.run_id)}
    record("tracking", f"PostgreSQL and MLflow's server killed for {DOWN:g} s under {WORKERS} workers", f"{RUNS} runs")
