"""MLflow's UI over the runs: its address, the view of the runs that it opens with, and a browser for it.

MLflow's own start page shows traces of language model applications, and its list of runs shows no metric; so the address
leads to the runs, in a view that shows the columns by which they are compared.
"""

import json
import os
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from foura.tracking.status import read_json, write_json

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

HOST, PORT = "127.0.0.1", 5000
PORTS = 100  # tried, from PORT on
RECORD = "ui.json"  # in the outputs folder: the address under which the UI was started last
VIEW = "foura"  # the key of the view
WAIT = 120.0  # seconds that the browser waits for the server
SHOWN = ("test/acc", "test/loss", "best/loss", "final/gap_loss", "cost/trainable_params")
COLUMNS = ("attributes.`Duration`", "attributes.`Dataset`", *(f"metrics.`{name}`" for name in SHOWN))


def base_address(outputs: Path) -> str:
    """The address of the UI over the runs in this folder: of their server, or where `foura ui` was started last."""
    server = urllib.parse.urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.scheme in ("http", "https"):
        return urllib.parse.urlunsplit((server.scheme, server.netloc.rpartition("@")[2], server.path, "", "")).rstrip(
            "/"
        )
    known = read_json(outputs / RECORD).get("address")
    return known if isinstance(known, str) and known.startswith("http://") else f"http://{HOST}:{PORT}"


def runs_address(base: str, experiment_id: str) -> str:
    """The address that opens the list of runs; a bare `base` opens MLflow's start page."""
    return f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def run_address(base: str, experiment_id: str, run_id: str) -> str:
    """The address of one run."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def set_view(client: "MlflowClient", experiment_id: str) -> None:
    """Store the columns of the view where MLflow keeps the views that users share."""
    view = json.dumps({"selectedColumns": list(COLUMNS)})
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{VIEW}", view)


def remember(outputs: Path, base: str) -> None:
    """Record that the UI has this address, and correct the links of reports that were made when it had another."""
    before = base_address(outputs)
    write_json(outputs / RECORD, {"address": base})
    if before == base:
        return
    for pattern in ("sweeps/*/report/report.html", "artifacts/*/artifacts/report/report.html"):
        for page in outputs.glob(pattern):
            text = page.read_text(encoding="utf-8")
            page.write_text(text.replace(f'href="{before}/#/', f'href="{base}/#/'), encoding="utf-8")


def free_port(host: str) -> int:
    """The first port from 5000 on that nothing listens on."""
    for port in range(PORT, PORT + PORTS):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    return PORT


def open_when_up(address: str) -> bool:
    """Open an address in the user's browser once its server answers; false if it does not, or there is no browser."""
    health = address.partition("/#/")[0] + "/health"
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(health, timeout=5).close()
        except (OSError, urllib.error.URLError):
            time.sleep(0.3)
        else:
            return webbrowser.open(address)
    return False


if __name__ == "__main__":  # beside the server: python -m foura.tracking.ui ADDRESS
    sys.exit(0 if open_when_up(sys.argv[1]) else 1)
