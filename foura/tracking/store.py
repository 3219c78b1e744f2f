"""The MLflow store: where runs are kept, and one run in it.

SQLite under outputs/, or whatever MLFLOW_TRACKING_URI names. Written by MlflowClient and not by Lightning's MLFlowLogger,
which sets MLFLOW_TRACKING_URI for the whole process: the next run of a sweep, or any child process, would inherit it.
"""

import functools
import importlib.metadata
import logging
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from foura.errors import UserError
from foura.tracking.outbox import GONE, PATIENCE, Outbox
from foura.tracking.status import write_json

logging.getLogger("mlflow").setLevel(logging.ERROR)  # that it makes its tables is no news
logging.getLogger("alembic").setLevel(logging.ERROR)
EXPERIMENT = "foura"
PARENT_TAG = "mlflow.parentRunId"


def tracking_uri(outputs: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite store of this outputs folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs / 'mlflow.db'}"


def open_store(outputs: Path) -> tuple[MlflowClient, str]:
    """(client, experiment id); the store and the experiment are made where they do not exist."""
    outputs.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(outputs)
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
    except Exception as error:  # of requests, of the database, of MLflow
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"the tracking store at {uri} does not answer ({said}). Start it, or unset MLFLOW_TRACKING_URI to keep runs in "
            f"{outputs}."
        ) from error
    if experiment is not None:
        return client, experiment.experiment_id
    # a local store keeps artifacts beside itself; a server knows its own place for them
    location = (outputs / "artifacts").as_uri() if uri.startswith("sqlite:") else None
    # the UI opens with runs and charts, and not with the traces of an agent
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags)


def parent_run(outputs: Path, sweep: str, command: str = "", tune: Sequence[str] = ()) -> str:
    """The id of the sweep's parent run; made on the first call, which must come before parallel jobs start.

    Args:
        command: what was typed to start the sweep, kept as a tag. tune: keys whose best value the report picks.
    """
    client, experiment_id = open_store(outputs)
    query = f"tags.sweep = '{sweep}' and tags.role = 'sweep'"
    found = client.search_runs([experiment_id], filter_string=query, max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {"sweep": sweep, "role": "sweep", "state": "finished", **code_tags()}
        run_id = client.create_run(experiment_id, run_name=sweep, tags=tags).info.run_id
        client.set_terminated(run_id)  # the parent only groups; its children have the states
        write_json(outputs / "sweeps" / sweep / "sweep.json", {"sweep": sweep, "parent_run_id": run_id})
    if command:
        client.set_tag(run_id, "command", command[:5000])
        client.set_tag(run_id, "tune", ",".join(tune))
    return run_id


class TrackedRun:
    """One run in the store. What the store does not take now is kept and delivered later (`foura sync`).

    Args:
        folder: of the run, where what could not be delivered is kept; None: nowhere.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: Path | None) -> None:
        self.client, self.run_id = client, run_id
        self.outbox = Outbox(client, run_id, folder)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """All of them in one call: a call costs as much as a small training step."""
        self.outbox.send({"metrics": dict(metrics), "step": step, "time": int(time.time() * 1000)})

    def log_artifact(self, path: Path, under: str | None = None) -> None:
        """A file or a folder, in the artifact folder `under`."""
        self.outbox.send({"artifact": str(path), "under": under})

    def logged_steps(self, metric: str) -> set[int]:
        """The steps at which a metric is there already, or waits to be."""
        waiting = {item["step"] for item in self.outbox.waiting if metric in item.get("metrics", {})}
        return waiting | {point.step for point in self.client.get_metric_history(self.run_id, metric)}

    def close(self, state: str) -> bool:
        """End the run in the store as it ended in truth; False where the store is behind (MLflow knows three states, the
        tag "state" ours)."""
        self.outbox.send({"end": state})
        return self.outbox.deliver(PATIENCE)


def start_run(
    outputs: Path,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    parent: str | None,
    folder: Path | None = None,
) -> TrackedRun:
    """A new MLflow run with its params and tags, under the sweep's parent run where there is one."""
    client, experiment_id = open_store(outputs)
    text_tags = {
        key: str(value) for key, value in {**tags, "role": "run", "versions": versions(), **code_tags()}.items()
    }
    if parent is not None:
        text_tags[PARENT_TAG] = parent
    run = client.create_run(experiment_id, run_name=name, tags=text_tags)
    client.log_batch(run.info.run_id, params=[Param(key, str(value)[:6000]) for key, value in params.items()])
    return TrackedRun(client, run.info.run_id, folder)


def continue_run(outputs: Path, run_id: str, folder: Path) -> TrackedRun | None:
    """An interrupted run, open again; None where the store does not have it (any more)."""
    client, _ = open_store(outputs)
    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            return None
    except MlflowException as error:
        if error.error_code in GONE:
            return None
        raise
    client.update_run(run_id, status="RUNNING")
    return TrackedRun(client, run_id, folder)


def discard_runs(outputs: Path, sweep: str, key: str, run_id: str | None) -> None:
    """Hide what a sweep's run left when it is being run anew, so that no result counts twice.

    `mlflow runs restore` brings a hidden run back. Runs of this key are looked for too: a process that was killed between
    making its run and writing status.json left one that no status.json names.
    """
    client, experiment_id = open_store(outputs)
    found = client.search_runs([experiment_id], filter_string=f"tags.sweep = '{sweep}' and tags.key = '{key}'")
    for stale in {run.info.run_id for run in found} | ({run_id} if run_id else set()):
        try:
            client.delete_run(stale)
        except MlflowException as error:
            if error.error_code not in GONE:
                raise


def code_tags() -> dict[str, str]:
    """The git commit that runs, under MLflow's own tag name; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"mlflow.source.git.commit": answer.stdout.strip()} if answer.returncode == 0 else {}


@functools.cache
def versions() -> str:
    """What the numbers may depend on beside our own code."""
    packages = (
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "peft", "transformers", "diffusers", "timm")
    )
    return f"python {platform.python_version()}, {', '.join(packages)}, {platform.machine()}"


def ui_command(outputs: Path) -> str:
    """What a user types to look at the runs."""
    folder = os.path.relpath(outputs)
    return "foura ui" if folder == "outputs" else f"foura ui {folder}"
