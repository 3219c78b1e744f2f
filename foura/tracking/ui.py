"""MLflow's UI over the runs: its address, the view of the runs that it opens with, and a browser for it.

MLflow's own start page shows traces of language model applications, and its list of runs shows no metric; so the address
leads to the runs, in a view that shows the columns by which they are compared.
"""

import contextlib
import json
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from foura.atomic import write_bytes
from foura.errors import UserError
from foura.escape import without_user
from foura.tracking.parts import folder_of
from foura.tracking.status import read_json, write_json
from foura.untrusted import TEXT

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

HOST, PORT = "127.0.0.1", 5000
PORTS = 100  # tried, from PORT on
RECORD = "ui.json"  # in the outputs folder: the address under which the UI was started last
VIEW = "foura"  # the key of the view
_ADDRESS = re.compile(r"http://(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}")  # as `foura ui` records it
WAIT = 120.0  # seconds that the browser waits for the server
SHOWN = ("best/acc", "best/loss", "test/acc", "test/loss", "final/gap_loss", "cost/trainable_params")


def base_address(outputs: Path) -> str:
    """The address of the UI over the runs in this folder: of their server, or where `foura ui` was started last."""
    # not parsed: a password that is not percent-encoded makes it illegal
    server = without_user(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.startswith(("http://", "https://")):
        return re.split(r"[?#]", server)[0].rstrip("/")
    known = read_json(outputs / RECORD).get("address")
    return known if isinstance(known, str) and _ADDRESS.fullmatch(known) else f"http://{HOST}:{PORT}"


def runs_address(base: str, experiment_id: str, sweep: str = "") -> str:
    """The address that opens the list of runs, or the runs of a sweep; a bare `base` opens MLflow's start page."""
    view = urllib.parse.quote(f"{VIEW}.{sweep}" if sweep else VIEW)
    return f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}"


def run_address(base: str, experiment_id: str, run_id: str) -> str:
    """The address of one run."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def set_view(client: "MlflowClient", experiment_id: str, sweep: str = "") -> None:
    """Store a view where MLflow keeps those that users share: its columns and, of a sweep, its runs with the best first."""
    view: dict[str, object] = {"selectedColumns": [f"metrics.`{name}`" for name in SHOWN]}
    if sweep:
        view["searchFilter"] = f"tags.sweep = '{sweep}' and tags.role = 'run'"
        view |= {"orderByKey": "metrics.`best/loss`", "orderByAsc": True}
    name = f"mlflow.sharedViewState.{VIEW}.{sweep}" if sweep else f"mlflow.sharedViewState.{VIEW}"
    client.set_experiment_tag(experiment_id, name, json.dumps(view))


def remember(outputs: Path, base: str) -> None:
    """Record that the UI has this address, and correct the links of reports that were made when it had another."""
    before = base_address(outputs)
    write_json(outputs / RECORD, {"address": base})
    if before == base:
        return
    for pattern in ("sweeps/*/report/report.html", "artifacts/*/artifacts/report/report.html"):
        for page in outputs.glob(pattern):
            with contextlib.suppress(UserError, OSError):  # a link, or a page of somebody else: it keeps its links
                text = folder_of(outputs, page).read(page, TEXT).decode("utf-8", errors="surrogateescape")
                moved = text.replace(f'href="{before}/#/', f'href="{base}/#/')
                write_bytes(page, moved.encode("utf-8", errors="surrogateescape"))


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
