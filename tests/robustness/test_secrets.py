"""Passwords and tokens: planted wherever a run meets one, and looked for in every file, tag, output and command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from foura.cli import main
from foura.errors import UserError, traceback_of
from foura.families.task import Task
from foura.tracking import journal
from foura.tracking.store import open_store
from tests.helpers.runs import children, client, status
from tests.helpers.survives import record
from tests.helpers.waiting import wait_until

SECRET = "sw0rdfish"
QUICK = ("adapter=lora", "rank=4", "dataset.limit=40", "dataset.epochs=2")
QUOTED = (
    f"HTTPConnectionPool: http://ann:{SECRET}@host/api?access_token={SECRET} refused the header Bearer {SECRET}xxxxxxxx"
)


def nowhere(folder: Path, *texts: object) -> None:
    """The secret is in none of the texts, nor in any file of the folder."""
    for text in texts:
        assert SECRET not in str(text)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes() or SECRET in path.name] == []


ADDRESSES = [
    f"http://ann:x%40{SECRET}%2f@127.0.0.1:9",
    f"http://ann:x@{SECRET}@127.0.0.1:9",
    f"http://ann:x[{SECRET}@127.0.0.1:9",
    f"http://ann:x#{SECRET}@127.0.0.1:9",
    f"http://{SECRET}0123456789@127.0.0.1:9",
    f"http://127.0.0.1:9/?password=x%26{SECRET}",
    f"postgresql+psycopg://ann:x%2f{SECRET}@127.0.0.1:9/m",
    f"postgresql+psycopg://ann:x@{SECRET}@127.0.0.1:9/m",
    f"postgresql+psycopg://ann:x@127.0.0.1:9/m?sslpassword={SECRET}&no_option=1",
    f"mysql+nodriver://ann:{SECRET}@127.0.0.1:9/m",
    f"databricks://ann:{SECRET}@profile",
    f"postgresql:/ann:{SECRET}@127.0.0.1:9/m",
    f"ann:{SECRET}@127.0.0.1:9/m",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_whatever_a_library_says_of_an_address(address, monkeypatch, tmp_path) -> None:
    """The libraries' own errors: of requests, urllib3, SQLAlchemy, a database's driver and MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # else it tries for two minutes
    with pytest.raises(UserError, match="does not answer") as refused:
        open_store(tmp_path)
    assert refused.value.__cause__ is not None
    nowhere(tmp_path, refused.value, traceback_of(refused.value))


@pytest.mark.parametrize("address", [f"http://ann:{SECRET}@127.0.0.1:9", f"https://127.0.0.1:9/?token={SECRET}"])
def test_the_address_of_a_store_that_does_not_answer(address, train, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    ended = train(*QUICK)
    assert "the tracking store at http" in str(ended.code) and "does not answer" in ended.code
    swept = train("-m", "sweep=s", *QUICK)
    assert "does not answer" in swept.code
    for command in (
        ("report", "s", "--outputs", str(ended.outputs)),
        ("sync", str(ended.outputs)),
        ("ui", str(ended.outputs)),
    ):
        monkeypatch.setattr(sys, "argv", ["foura", *command])
        with pytest.raises(SystemExit) as left:
            main()
        nowhere(tmp_path, left.value)
    nowhere(tmp_path, ended.code, ended.out, swept.code, swept.out, *capsys.readouterr())
    record("faults", "a password in the tracking store's address", "in no file and no output")


def test_errors_that_quote_an_address(train, monkeypatch, tmp_path) -> None:
    """A store that fails in the middle, and a bug in training: requests and SQLAlchemy put addresses into their messages."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(journal, "PATIENCE", 0.0)

    def refuses(self, *arguments, **named):
        raise ConnectionError(QUOTED)

    with monkeypatch.context() as store:
        store.setattr(MlflowClient, "set_tag", refuses)
        ended = train(*QUICK)
    assert ended.code == 0 and "tracking is behind (HTTPConnectionPool: http://***@host" in " ".join(ended.out.split())
    monkeypatch.setattr(Task, "training_step", refuses)
    swept = train("-m", "sweep=s", *QUICK, into="swept")
    assert swept.code == 1 and "error.txt" in swept.out
    (path,) = swept.outputs.glob("sweeps/s/*/status.json")
    assert "http://***@host" in json.loads(path.read_text())["error"]
    assert "http://***@host" in path.with_name("error.txt").read_text()
    nowhere(tmp_path, ended.out, swept.out)


@pytest.mark.slow
def test_tags_and_params(train, monkeypatch, tmp_path) -> None:
    """The environment's token, and a remote with a token in it, as CI checks code out."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    remote = {"COUNT": "1", "KEY_0": "remote.origin.url", "VALUE_0": f"https://ghp_{SECRET}@github.com/a/b"}
    for name, value in remote.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    ended = train("-m", "sweep=s", *QUICK, f"adapter.name=x{SECRET}")
    assert ended.code == 0
    parents, runs = children(ended.outputs, "s")
    for run in parents + runs:
        nowhere(tmp_path / "none", run.data.tags, run.data.params, run.info)
    assert runs[0].data.params["adapter.name"] == "x***"
    for path in (ended.outputs / "sweeps/s/report").iterdir():
        assert SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "override",
    [
        f"dataset.path=https://ann:{SECRET}@host/x",
        f"+hydra.job.env_set.X=http://a:{SECRET}@h",
        f"adapter.name=x{SECRET}-0123456789",  # as a shell writes it for $HF_TOKEN
    ],
)
def test_a_command_with_a_password_in_it_is_refused(override, train, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}-0123456789")
    ended = train(*QUICK, override)
    assert "the command has a password or a token in it" in ended.code
    nowhere(tmp_path, ended.code, ended.out)


def test_a_config_with_a_password_in_it_is_refused() -> None:
    from foura.config import check
    from tests.helpers.config import composed

    for place in (
        f"ann:{SECRET}@host/x",
        f"ann:x%40{SECRET}@host/x",
        f"{SECRET}@host/x",
        f"host/x?sslpassword={SECRET}",
    ):
        with pytest.raises(UserError, match=r"dataset\.path has a password or a token in it") as refused:
            check(composed("dataset=imagefolder", f"dataset.path='https://{place}'"))
        assert SECRET not in str(refused.value)


def command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return "\n".join(found)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc here")
def test_the_ui_gets_the_address_by_its_environment(run_env, tmp_path, empty_store) -> None:
    shutil.copy(empty_store, tmp_path / "store.db")
    env = {**run_env, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/store.db?password={SECRET}"}
    command = [sys.executable, "-m", "foura", "ui", str(tmp_path), "--port", "0"]
    server = subprocess.Popen(command, env=env, cwd=tmp_path, start_new_session=True, stdout=-3, stderr=-3)
    try:
        wait_until(lambda: "mlflow ui --workers" in command_lines(), "MLflow")
        wait_until(lambda: "uvicorn" in command_lines() or server.poll() is not None, "its server")
        assert SECRET not in command_lines()
        assert server.poll() is None
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_finished_run_has_its_id(train) -> None:
    """The control: what is redacted above is there to be found."""
    ended = train(*QUICK)
    assert client(ended.outputs).get_run(status(ended)["run_id"]).data.params["rank"] == "4"
