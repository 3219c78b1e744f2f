"""The MLflow store: where runs are kept, and one run in it.

SQLite under outputs/, or whatever MLFLOW_TRACKING_URI names. Written by MlflowClient and not by Lightning's MLFlowLogger,
which sets MLFLOW_TRACKING_URI for the whole process: the next run of a sweep, or any child process, would inherit it.
"""

import functools
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from foura.errors import UserError
from foura.tracking.journal import PATIENCE, Outbox
from foura.tracking.status import read_json, write_json

logging.getLogger("mlflow").setLevel(logging.ERROR)  # that it makes its tables is no news
logging.getLogger("alembic").setLevel(logging.ERROR)
EXPERIMENT = "foura"
PARENT_TAG = "mlflow.parentRunId"
UNKNOWN = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)  # of a run that the store does not have
GONE = (UNKNOWN, ErrorCode.Name(INVALID_PARAMETER_VALUE))  # … or that was hidden in it
_ready: set[str] = set()  # stores that this process has opened
_files: dict[str, int] = {}  # inode of each SQLite file that this process has opened


def tracking_uri(outputs: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite store of this outputs folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs / 'mlflow.db'}"


def open_store(outputs: Path) -> tuple[MlflowClient, str]:
    """(client, experiment id); the store and the experiment are made where they do not exist."""
    outputs.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(outputs)
    if uri in _ready:
        return _open_store(outputs)
    # processes that make a store, or an experiment in it, at once would get in each other's way
    with FileLock(outputs / ".store.lock"):
        found = _open_store(outputs)
    _ready.add(uri)
    return found


def _open_store(outputs: Path) -> tuple[MlflowClient, str]:
    uri = tracking_uri(outputs)
    _same_file(uri)
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
    except Exception as error:  # of requests, of the database, of MLflow
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"the tracking store at {uri} does not answer ({said}). Start it, or unset MLFLOW_TRACKING_URI to keep runs in "
            f"{outputs}."
        ) from error
    _same_file(uri)
    if experiment is not None:
        return client, experiment.experiment_id
    # a local store keeps artifacts beside itself; a server knows its own place for them
    location = (outputs / "artifacts").as_uri() if uri.startswith("sqlite:") else None
    # the UI opens with runs and charts, and not with the traces of an agent
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags)


def parent_run(
    outputs: Path,
    sweep: str,
    command: str = "",
    tune: Sequence[str] = (),
    margins: Mapping[str, float | None] | None = None,
) -> str:
    """The id of the sweep's parent run; made on the first call, which must come before parallel jobs start.

    Args:
        command: what was typed to start the sweep, kept as a tag. tune: keys whose best value the report picks.
        margins: the config's margins, of which the declared ones are kept.
    """
    client, experiment_id = open_store(outputs)
    query = f"tags.sweep = '{sweep}' and tags.role = 'sweep'"
    found = client.search_runs([experiment_id], filter_string=query, max_results=1)
    if found and not command:
        return found[0].info.run_id
    with FileLock(outputs / ".parent.lock"):
        found = client.search_runs([experiment_id], filter_string=query, max_results=1)
        declared = {key: value for key, value in (margins or {}).items() if value is not None}
        told = {"command": command[:5000], "tune": ",".join(tune), "margins": json.dumps(declared)} if command else {}
        return _parent_run(client, experiment_id, found, outputs, sweep, told)


def _parent_run(
    client: MlflowClient,
    experiment_id: str,
    found: Sequence[Any],
    outputs: Path,
    sweep: str,
    told: dict[str, str],
) -> str:
    """The parent run, as `found` in the store, or made, with what is told about it."""
    path = outputs / "sweeps" / sweep / "sweep.json"
    new = bool(told)
    told = read_json(path) | told  # the file outlives a store that is lost
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {"sweep": sweep, "role": "sweep", "state": "finished", **code_tags()}
        run_id = client.create_run(experiment_id, run_name=sweep, tags=tags).info.run_id
        client.set_terminated(run_id)  # the parent only groups; its children have the states
    if new or not found:
        for name in ("command", "tune", "margins"):
            client.set_tag(run_id, name, told.get(name, ""))
        write_json(path, {**told, "sweep": sweep, "parent_run_id": run_id})
    return run_id


def _same_file(uri: str) -> None:
    """Refuse to write where nobody will read: open connections go on writing to a SQLite file that was deleted."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    inode = path.stat().st_ino if path.exists() else 0
    known = _files.setdefault(uri, inode) if inode else _files.get(uri, 0)
    if known != inode:
        raise UserError(f"the tracking store {path} was deleted or replaced while it was in use")


class TrackedRun:
    """One run in the store. What the store does not take now is kept in the run's folder and delivered later.

    Args:
        folder: of the run, where tracking.jsonl and its artifacts are.
    """

    def __init__(self, outputs: Path, folder: Path) -> None:
        self.outputs, self.folder = outputs, folder
        self.outbox = Outbox(self._deliver, folder)

    @property
    def run_id(self) -> str | None:
        """The id in MLflow; None as long as the store does not know the run."""
        return self.outbox.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """All of them in one call: a call costs as much as a small training step."""
        self.outbox.send({"metrics": dict(metrics), "step": step, "time": int(time.time() * 1000)})

    def log_artifact(self, path: Path, under: str | None = None) -> None:
        """A file or a folder of the run's folder, in the artifact folder `under`."""
        self.outbox.send({"artifact": str(path.relative_to(self.folder)), "under": under})

    def logged_steps(self, metric: str) -> set[int]:
        """The steps at which a metric was logged, delivered or not."""
        return {item["step"] for item in self.outbox.items if metric in item.get("metrics", {})}

    def close(self, state: str) -> bool:
        """End the run in the store as it ended in truth; False where the store is behind (MLflow knows three states, the
        tag "state" ours)."""
        self.outbox.send({"end": state})
        return self.outbox.deliver(PATIENCE)

    def _deliver(self, run_id: str | None, item: dict[str, Any]) -> str:
        client, experiment_id = open_store(self.outputs)
        if run_id is None:
            assert "create" in item
            return self._create(client, experiment_id, item["create"])
        if "metrics" in item:
            points = [Metric(key, value, item["time"], item["step"]) for key, value in item["metrics"].items()]
            client.log_batch(run_id, metrics=points)
        elif "artifact" in item:
            client.log_artifact(run_id, str(self.folder / item["artifact"]), item["under"])
        elif "reopen" in item:
            client.update_run(run_id, status="RUNNING")
        else:
            state = item["end"]
            client.set_tag(run_id, "state", state)
            ended = {"finished": "FINISHED", "interrupted": "KILLED"}.get(state, "FAILED")
            client.set_terminated(run_id, ended)
        return run_id

    def _create(self, client: MlflowClient, experiment_id: str, run: dict[str, Any]) -> str:
        """The run, made or found: who delivers twice because of a crash finds what was made the first time."""
        tags, sweep = dict(run["tags"]), run["sweep"]
        query = f"tags.uid = '{tags['uid']}'"
        found = client.search_runs([experiment_id], filter_string=query, max_results=1)
        if found:
            return found[0].info.run_id
        if sweep is not None:
            _discard(client, experiment_id, sweep, tags["key"], run["replaces"])
            tags[PARENT_TAG] = parent_run(self.outputs, sweep)
        made = client.create_run(experiment_id, run_name=run["name"], tags=tags, start_time=run["time"])
        client.log_batch(made.info.run_id, params=[Param(key, value) for key, value in run["params"].items()])
        return made.info.run_id


class Untracked(TrackedRun):
    """What a rank has that does not lead: it tells the store nothing."""

    run_id = None

    def __init__(self) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        pass

    def log_artifact(self, path: Path, under: str | None = None) -> None:
        pass

    def logged_steps(self, metric: str) -> set[int]:
        return set()

    def close(self, state: str) -> bool:
        return True


def start_run(
    outputs: Path,
    folder: Path,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    sweep: str | None,
    replaces: str | None = None,
) -> TrackedRun:
    """A new MLflow run with its params and tags; in a sweep under its parent run.

    Args:
        tags: with the run's "key".
        replaces: of a sweep: the run that this folder had before, which is hidden, as are others of the same key, so that
            no result counts twice. `mlflow runs restore` brings a hidden run back.

    Raises:
        UserError: outside a sweep, a store that does not answer. (In a sweep it did when the sweep began.)
    """
    if sweep is None:
        open_store(outputs)
    run = TrackedRun(outputs, folder)
    run.outbox.begin()
    told = {**tags, "role": "run", "uid": uuid.uuid4().hex, "versions": versions(), **code_tags()}
    run.outbox.send(
        {
            "create": {
                "name": name,
                "params": {key: str(value)[:6000] for key, value in params.items()},
                "tags": {key: str(value) for key, value in told.items()},
                "sweep": sweep,
                "replaces": replaces,
                "time": int(time.time() * 1000),
            }
        }
    )
    return run


def continue_run(outputs: Path, folder: Path) -> TrackedRun | None:
    """An interrupted run, open again, whether or not the store answers now; None where it was hidden or never told of."""
    run = TrackedRun(outputs, folder)
    if not run.outbox.items:
        return None
    if known(run) == "hidden":
        return None
    run.outbox.send({"reopen": True})
    return run


def known(run: TrackedRun) -> str:
    """Of a run that was told of: "there", "hidden" or "unknown" in the store, which is then to be told all; "" where the
    store does not answer."""
    if run.run_id is None:
        return "there"  # as soon as it is delivered
    try:
        client, _ = open_store(run.outputs)
        stage = client.get_run(run.run_id).info.lifecycle_stage
    except Exception as error:  # of requests, of the database, of MLflow
        if not isinstance(error, MlflowException) or error.error_code != UNKNOWN:
            return ""
        run.outbox.again()
        return "unknown"
    return "there" if stage == "active" else "hidden"


def _discard(client: MlflowClient, experiment_id: str, sweep: str, key: str, run_id: str | None) -> None:
    """Hide what a sweep's run left. Runs of this key are looked for too: a process that was killed between making its run
    and writing status.json left one that no status.json names."""
    found = client.search_runs([experiment_id], filter_string=f"tags.sweep = '{sweep}' and tags.key = '{key}'")
    for stale in {run.info.run_id for run in found} | ({run_id} if run_id else set()):
        try:
            client.delete_run(stale)
        except MlflowException as error:
            if error.error_code not in GONE:
                raise


def sync(outputs: Path) -> list[tuple[str, str]]:
    """Deliver what waits in any run's folder, and what a store has lost; (run, what was done) for each that had something.

    A run that another process is at is left to it.
    """
    done = []
    for path in sorted(outputs.glob("*/**/tracking.jsonl")):
        folder = path.parent
        try:
            with FileLock(folder / ".lock").acquire(timeout=0):
                run = TrackedRun(outputs, folder)
                state = known(run)
                waiting = len(run.outbox.items) - run.outbox.delivered
                if state == "hidden" or not waiting:
                    continue
                if not run.outbox.deliver():
                    raise UserError(f"{folder}: the store did not take it ({run.outbox.error}); it is kept.")
                status = read_json(folder / "status.json")
                if status:
                    write_json(folder / "status.json", {**status, "run_id": run.run_id})
                done.append((folder.name, "made again" if state == "unknown" else "delivered"))
        except Timeout:
            continue
    return done


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
