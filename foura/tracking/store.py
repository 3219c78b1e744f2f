"""The MLflow store: opened, or created on first use, and the parent run of a sweep in it.

SQLite under outputs/, or whatever MLFLOW_TRACKING_URI names. Written with MlflowClient and not with Lightning's MLFlowLogger,
which sets MLFLOW_TRACKING_URI for the whole process: the next run of a sweep, or any child process, would inherit it.
"""

import json
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow.tracking import MlflowClient

from foura.errors import UserError, first_line
from foura.tracking.status import read_json, write_json

logging.getLogger("mlflow").setLevel(logging.ERROR)  # it reports every table that it creates
logging.getLogger("alembic").setLevel(logging.ERROR)
EXPERIMENT = "foura"
_ready: set[str] = set()  # addresses of the stores that this process has opened
_files: dict[str, int] = {}  # inode of each SQLite file that this process has opened


def tracking_uri(outputs: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the address of the SQLite store in this outputs folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs / 'mlflow.db'}"


def open_store(outputs: Path) -> tuple[MlflowClient, str]:
    """(client, experiment id); the store and the experiment are created where they do not exist.

    Raises:
        UserError: the store does not answer, or its SQLite file was deleted or replaced while this process used it.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(outputs)
    if uri in _ready:
        return _connect(outputs, uri)
    # processes that create a store, or an experiment in it, at the same time would race for its schema
    with FileLock(outputs / ".store.lock"):
        found = _connect(outputs, uri)
    _ready.add(uri)
    return found


def _connect(outputs: Path, uri: str) -> tuple[MlflowClient, str]:
    _check_same_file(uri)
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
    except Exception as error:  # requests, the database and MLflow each raise their own kinds
        raise UserError(
            f"the tracking store at {uri} does not answer ({first_line(error)}). Start it, or unset MLFLOW_TRACKING_URI "
            f"to keep runs in {outputs}."
        ) from error
    _check_same_file(uri)
    if experiment is not None:
        return client, experiment.experiment_id
    # a local store keeps artifacts beside itself; a server has a place of its own for them
    location = (outputs / "artifacts").as_uri() if uri.startswith("sqlite:") else None
    tags = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens with runs, not with traces
    return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags)


def _check_same_file(uri: str) -> None:
    """Refuse to write to a SQLite file that was deleted: open connections would, and nobody could read the result."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    inode = path.stat().st_ino if path.exists() else 0
    known = _files.setdefault(uri, inode) if inode else _files.get(uri, 0)
    if known != inode:
        raise UserError(f"the tracking store {path} was deleted or replaced while it was in use")


def parent_run(
    outputs: Path,
    sweep: str,
    command: str = "",
    tune: Sequence[str] = (),
    margins: Mapping[str, float | None] | None = None,
) -> str:
    """The id of the sweep's parent run, created by the first call, which must come before parallel jobs start.

    Args:
        command: the command line that started the sweep, kept as a tag.
        tune: keys whose best value the report picks on validation data.
        margins: the config's margins, of which those that are set are kept.

    Raises:
        UserError: the store does not answer.
    """
    client, experiment_id = open_store(outputs)
    found = _find_parent(client, experiment_id, sweep)
    if found and not command:
        return found
    declared = json.dumps({key: value for key, value in (margins or {}).items() if value is not None})
    told = {"command": command[:5000], "tune": ",".join(tune), "margins": declared} if command else {}
    with FileLock(outputs / ".parent.lock"):
        found = _find_parent(client, experiment_id, sweep)
        return _write_parent(client, experiment_id, found, outputs / "sweeps" / sweep / "sweep.json", sweep, told)


def _find_parent(client: MlflowClient, experiment_id: str, sweep: str) -> str | None:
    query = f"tags.sweep = '{sweep}' and tags.role = 'sweep'"
    found = client.search_runs([experiment_id], filter_string=query, max_results=1)
    return found[0].info.run_id if found else None


def _write_parent(
    client: MlflowClient, experiment_id: str, found: str | None, path: Path, sweep: str, told: dict[str, str]
) -> str:
    """Create the parent run unless it was `found`, and keep what was `told` in it and in sweep.json, which outlives a store."""
    run_id = found
    if run_id is None:
        tags = {"sweep": sweep, "role": "sweep", "state": "finished", **code_tags()}
        run_id = client.create_run(experiment_id, run_name=sweep, tags=tags).info.run_id
        client.set_terminated(run_id)  # the parent only groups; its children have the states
    if told or found is None:
        told = {**read_json(path), **told}
        for name in ("command", "tune", "margins"):
            client.set_tag(run_id, name, told.get(name, ""))
        write_json(path, {**told, "sweep": sweep, "parent_run_id": run_id})
    return run_id


def code_tags() -> dict[str, Any]:
    """The git commit of the code that runs, under MLflow's own tag name; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"mlflow.source.git.commit": answer.stdout.strip()} if answer.returncode == 0 else {}
