"""The address of MLflow's UI: it leads to the runs, and reports link to where the UI really is."""

import http.server
import json
import socket
import sys
import threading
from typing import ClassVar

import pytest

from foura.children import command
from foura.cli import main
from foura.report.page import report
from foura.tracking import ui
from foura.tracking.store import experiment_for_ui, open_store
from tests.helpers.sweeps import grid, synthetic


def test_the_address_opens_the_runs_and_not_mlflow_s_start_page() -> None:
    opened = ui.runs_address("http://127.0.0.1:5000", "1")
    assert opened.startswith("http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning")
    assert (
        ui.run_address("http://h:1", "2", "abc") == "http://h:1/#/experiments/2/runs/abc?workflowType=machine_learning"
    )


@pytest.mark.parametrize(
    ("server", "base"),
    [
        ("", "http://127.0.0.1:5000"),
        ("sqlite:////tmp/x.db", "http://127.0.0.1:5000"),
        ("https://user:secret@mlflow.example.org/team/", "https://mlflow.example.org/team"),
        ("https://user:se[c/r#e?t@mlflow.example.org/team?token=x#y", "https://mlflow.example.org/team"),
        ("https://ghp_abc@mlflow.example.org", "https://mlflow.example.org"),
        ("postgresql://user:se[cret@db/m", "http://127.0.0.1:5000"),
    ],
)
def test_runs_on_a_server_are_linked_there_without_its_password(server, base, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert ui.base_address(tmp_path) == base


def test_links_follow_the_port_that_the_ui_really_has(tmp_path) -> None:
    synthetic(tmp_path, "s", grid(0.02))
    page = report(tmp_path, "s")
    assert 'href="http://127.0.0.1:5000/#/experiments/' in page.read_text()
    ui.remember(tmp_path, "http://127.0.0.1:5013")
    copies = [page, *tmp_path.glob("artifacts/*/artifacts/report/report.html")]
    assert len(copies) == 2
    for copy in copies:
        text = copy.read_text()
        assert 'href="http://127.0.0.1:5013/#/experiments/' in text and 'href="http://127.0.0.1:5000' not in text
    assert "http://127.0.0.1:5013/#/experiments/" in report(tmp_path, "s").read_text()


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        'http://x:1"><script>alert(1)</script>',
        "http://evil.example.org/path?q=",
        "http://user@evil:80",
        "http://x:1\n",
        3,
    ],
)
def test_a_recorded_address_of_another_kind_is_not_linked(address, tmp_path) -> None:
    (tmp_path / ui.RECORD).write_text(json.dumps({"address": address}))
    assert ui.base_address(tmp_path) == "http://127.0.0.1:5000"


@pytest.mark.parametrize("address", ["http://127.0.0.1:5013", "http://[::1]:5000", "http://machine.local:80"])
def test_a_recorded_address_is_linked(address, tmp_path) -> None:
    ui.remember(tmp_path, address)
    assert ui.base_address(tmp_path) == address


def test_the_list_has_columns_and_a_sweep_its_runs(tmp_path) -> None:
    synthetic(tmp_path, "s", grid(0.0, seeds=range(1)))
    report(tmp_path, "s")
    client, experiment = open_store(tmp_path)
    assert experiment_for_ui(f"sqlite:///{tmp_path / 'mlflow.db'}") == experiment
    tags = client.get_experiment(experiment).tags
    every, sweep = (json.loads(tags[f"mlflow.sharedViewState.{name}"]) for name in ("foura", "foura.s"))
    assert "metrics.`test/acc`" in every["selectedColumns"]
    found = client.search_runs([experiment], filter_string=sweep["searchFilter"])
    assert {run.data.tags["role"] for run in found} == {"run"} and len(found) == 4


def test_the_parent_run_is_described_by_its_verdicts_and_command(tmp_path) -> None:
    synthetic(tmp_path, "s", grid(0.02))
    page = report(tmp_path, "s")
    client, experiment = open_store(tmp_path)
    (parent,) = client.search_runs([experiment], filter_string="tags.role = 'sweep'")
    told, verdicts = parent.data.tags["mlflow.note.content"], (page.parent / "verdicts.txt").read_text()
    assert (
        "- test accuracy: of 2 comparisons with lora: 2 better." in told and "\n\n`python train.py -m sweep=s" in told
    )
    assert verdicts.startswith("test accuracy: of 2 comparisons with lora: 2 better.\n  foura at rank 4: better")
    assert parent.data.tags["mlflow.user"] and parent.data.tags["mlflow.source.name"] == "train.py"


def test_a_taken_port_is_not_chosen() -> None:
    first = ui.free_port("127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert ui.free_port("127.0.0.1") > first


# -- foura ui --open


class Slow(http.server.BaseHTTPRequestHandler):
    """A server that is not up yet for its first two requests."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if len(self.asked) > 2 else 503)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The addresses that the user's browser was given."""
    given: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: given.append(address) or True)
    return given


def test_the_browser_opens_the_runs_once_the_server_answers(opened, monkeypatch) -> None:
    monkeypatch.setattr(Slow, "asked", [])
    with http.server.HTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = ui.runs_address(f"http://127.0.0.1:{server.server_address[1]}", "1")
        assert ui.open_when_up(address)
        server.shutdown()
    assert opened == [address] and Slow.asked == ["/health"] * 3


def test_no_browser_is_opened_where_the_server_does_not_come_up(opened, monkeypatch) -> None:
    monkeypatch.setattr(ui, "WAIT", 0.0)
    assert not ui.open_when_up("http://127.0.0.1:1/#/experiments/1/runs") and opened == []


@pytest.mark.parametrize("wished", [True, False])
def test_open_starts_what_opens_the_address_that_is_printed(wished, tmp_path, monkeypatch, capsys) -> None:
    synthetic(tmp_path, "s", grid(0.0, seeds=range(1)))
    started: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in ("MLFLOW_BACKEND_STORE_URI", "PYTHONSAFEPATH", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"):
        monkeypatch.setenv(name, "")  # the command sets them: they are restored after the test
    monkeypatch.setattr("subprocess.Popen", started.append)
    monkeypatch.setattr("os.execv", lambda _program, words: started.append(words))
    monkeypatch.setattr("sys.argv", ["foura", "ui", str(tmp_path), *(["--open"] if wished else [])])
    main()
    address, *browsers = capsys.readouterr().out.strip(), *started[:-1]
    assert started[-1][-1] == address.split("/#/")[0].rpartition(":")[2]  # the server's port
    assert browsers == ([command("foura.tracking.ui", address)] if wished else [])
    assert "/#/experiments/1/runs?workflowType=machine_learning" in address
