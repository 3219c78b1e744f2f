"""The MLflow UI over a sweep, in a real browser: it lists the runs, opens one, and shows the report."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.helpers.network import answers, free_port
from tests.helpers.waiting import wait_until

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here: `apt install chromium` to look at the UI"),
]


def seen(url: str, wanted: str, tmp_path: Path, name: str) -> str:
    """The page at `url` as the browser has it once it shows `wanted`; a screenshot is left in tmp_path."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1500,1000",
        f"--user-data-dir={tmp_path}/u",
    ]
    page = ""
    for wait in (15_000, 40_000):
        ask = [BROWSER, *options, f"--virtual-time-budget={wait}", "--dump-dom", url]
        page = subprocess.run(ask, capture_output=True, text=True, timeout=180, check=False).stdout
        if wanted in page:
            break
    shot = [BROWSER, *options, "--virtual-time-budget=15000", f"--screenshot={tmp_path / name}.png", url]
    subprocess.run(shot, capture_output=True, timeout=180, check=False)
    return page


def test_the_ui_lists_a_sweep_opens_a_run_and_shows_the_report(train, run_env, tmp_path) -> None:
    ended = train(
        "-m", "sweep=look", "adapter=head,foura", "rank=4", "seed=0,1,2", "dataset.limit=40", "dataset.epochs=2"
    )
    assert ended.code == 0
    store = MlflowClient(f"sqlite:///{ended.outputs / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("foura").experiment_id
    runs = store.search_runs([experiment])
    (parent,) = [run for run in runs if run.data.tags["role"] == "sweep"]
    child = next(run for run in runs if run.data.tags["role"] == "run")
    port = free_port()
    command = [sys.executable, "-m", "foura", "ui", str(ended.outputs), "--port", str(port)]
    server = subprocess.Popen(command, env={**run_env, **os.environ}, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/health"), "the UI's answer")
        listed = seen(f"{url}/#/experiments/{experiment}/runs", ">look<", tmp_path, "list")
        assert ">look<" in listed
        opened = seen(f"{url}/#/experiments/{experiment}/runs/{child.info.run_id}", "test/acc", tmp_path, "run")
        assert child.info.run_name in opened and "test/acc" in opened
        page = seen(
            f"{url}/#/experiments/{experiment}/runs/{parent.info.run_id}/artifacts/report/report.html",
            "report.html",
            tmp_path,
            "report",
        )
        assert "report.html" in page
    finally:
        os.killpg(server.pid, signal.SIGTERM)
    report = seen((ended.outputs / "sweeps/look/report/report.html").as_uri(), "comparisons", tmp_path, "page")
    assert "of 1 comparison with head" in report and "<img" in report
    assert "http" not in report.split("Where this comes from")[0]  # nothing is fetched
