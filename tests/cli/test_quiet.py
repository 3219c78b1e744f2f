"""Hosts that a default run, a report and the UI look up: none."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.helpers.network import answers, free_port
from tests.helpers.waiting import wait_until

# loaded by every Python process whose path has it: writes down each name that is looked up, and each address connected to
LISTENER = """
import os, socket
KEPT = os.environ["LOOKED_UP"]
def tell(host):
    if isinstance(host, bytes):
        host = host.decode()
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0", "::", socket.gethostname()):
        with open(KEPT, "a") as file:
            file.write(f"{host}\\n")
look_up, connect = socket.getaddrinfo, socket.socket.connect
def getaddrinfo(host, *more, **named):
    tell(host)
    return look_up(host, *more, **named)
def connecting(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        tell(address[0])
    return connect(self, address)
socket.getaddrinfo, socket.socket.connect = getaddrinfo, connecting
"""
# Lightning, PyTorch and MLflow are quiet in CI, so that a test there would see nothing
CI = ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "HF_HUB_OFFLINE", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")


@pytest.fixture
def listening(run_env, root, tmp_path):
    """(environment, the hosts looked up so far)."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(LISTENER)
    kept = tmp_path / "looked-up"
    kept.touch()
    env = {name: value for name, value in run_env.items() if name not in CI}
    env |= {"LOOKED_UP": str(kept), "PYTHONPATH": os.pathsep.join([str(tmp_path / "path"), str(root)])}
    return env, lambda: kept.read_text().split()


QUICK = ("adapter=lora", "rank=4", "dataset.limit=40", "trainer.max_epochs=1")


@pytest.mark.slow
def test_a_run_a_sweep_with_its_report_and_the_ui_look_up_no_host(listening, root, tmp_path, empty_store) -> None:
    env, hosts = listening
    outputs = tmp_path / "outputs"
    for more in ((), ("-m", "sweep=s")):
        command = [sys.executable, str(root / "train.py"), *more, f"outputs={outputs}", *QUICK]
        subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True)
    report = [sys.executable, "-m", "foura", "report", "s", "--outputs", str(outputs)]
    subprocess.run(report, env=env, cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    ui = [sys.executable, "-m", "foura", "ui", str(outputs), "--port", str(port)]
    server = subprocess.Popen(ui, env=env, cwd=tmp_path, start_new_session=True, stdout=-3, stderr=-3)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), "the UI's answer")
        answers(f"http://127.0.0.1:{port}/ajax-api/3.0/mlflow/ui-telemetry")  # what its page asks its server for
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert hosts() == []


@pytest.mark.slow
def test_the_listener_hears_mlflow_where_its_telemetry_is_on(listening, root, tmp_path, empty_store) -> None:
    """The control, and the switch: what the environment says stays."""
    env, hosts = listening
    shutil.copy(empty_store, tmp_path)
    talk = f"from pathlib import Path; from foura.tracking.store import open_store; open_store(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", talk], env=env, cwd=root, check=True, capture_output=True)
    assert hosts() == []
    shutil.copy(empty_store, tmp_path)
    talk += f"; import time; [time.sleep(0.1) for _ in range(300) if not Path({env['LOOKED_UP']!r}).read_text()]"
    env["MLFLOW_DISABLE_TELEMETRY"] = "false"
    subprocess.run([sys.executable, "-c", talk], env=env, cwd=root, check=True, capture_output=True)
    assert any("mlflow" in host for host in hosts())
