"""The MLflow store: opened, or created on first use, and the parent run of a sweep in it.

Written with MlflowClient and not with Lightning's MLFlowLogger,
which sets MLFLOW_TRACKING_URI for the whole process: the next run of a sweep, or any child process, would inherit it.
"""

import functools
import getpass
import json
import logging
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from foura.atomic import lock
from foura.errors import UserError, first_line
from foura.escape import redact
from foura.tracking.address import database, no_stray_folder, tracking_uri
from foura.tracking.artifacts import EXPERIMENT, Artifacts, mend
from foura.tracking.parts import ARTIFACTS
from foura.tracking.status import read_json, write_json
from foura.tracking.ui import set_view

logging.getLogger("mlflow").setLevel(logging.ERROR)  # it reports every table that it creates
logging.getLogger("alembic").setLevel(logging.ERROR)
UNKNOWN = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)  # of a run that the store does not have
GONE = (UNKNOWN, ErrorCode.Name(INVALID_PARAMETER_VALUE))  # … or that is hidden in it
NOTE = "mlflow.note.content"  # MLflow's tag for a description
TAG = 5000  # characters of a tag
TOLD = ("command", "tune", "margins", "declared")  # tags of a sweep's parent run that its commands add to
_ready: set[str] = set()  # addresses of the stores that this process has opened
_files: dict[str, int] = {}  # inode of each SQLite file that this process has opened


def open_store(outputs: Path) -> tuple[MlflowClient, str]:
    """(client, experiment id); the store and the experiment are created where they do not exist.

    Raises:
        UserError: the store does not answer, a user has deleted the experiment in it, or its SQLite file was deleted or
            replaced while this process used it.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(outputs)
    if uri in _ready:
        return _connect(outputs, uri)
    # processes that create a store, or an experiment in it, at the same time would race for its schema
    with lock(outputs / ".store.lock"), no_stray_folder(uri):
        found = _connect(outputs, uri)
        mend(outputs, uri)
    _ready.add(uri)
    return found


def artifacts_of(outputs: Path, client: MlflowClient) -> Artifacts:
    """The artifacts of the store that `open_store` opens for this folder."""
    return Artifacts(outputs, tracking_uri(outputs), client)


def _connect(outputs: Path, uri: str) -> tuple[MlflowClient, str]:
    _check_same_file(uri)
    try:
        client = _client(uri, os.getpid())
        experiment = client.get_experiment_by_name(EXPERIMENT)
    except Exception as error:  # requests, the database and MLflow each raise their own kinds
        raise UserError(
            f"the tracking store at {uri} does not answer ({first_line(error)}). Start it, or unset MLFLOW_TRACKING_URI "
            f"to keep runs in {outputs}."
        ) from error
    _check_same_file(uri)
    if experiment is not None:
        _check_active(experiment, uri)
        return client, experiment.experiment_id
    # a local store keeps artifacts beside itself; a server has a place of its own for them
    location = (outputs / ARTIFACTS).as_uri() if uri.startswith("sqlite:") else None
    tags = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens with runs, not with traces
    return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags)


def experiment_for_ui(uri: str) -> str | None:
    """The id of the experiment in an existing store, with its view for the UI; None if nothing was ever tracked there."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "active":
        set_view(client, experiment.experiment_id)
    return str(experiment.experiment_id)


@functools.cache
def _client(uri: str, process: int) -> MlflowClient:
    """One per process, as making one takes as long as several calls."""
    return MlflowClient(uri)


def _check_active(experiment: Experiment, uri: str) -> None:
    """Refuse an experiment that a user deleted in the UI: MLflow keeps it, and takes no runs for it."""
    if experiment.lifecycle_stage == "active":
        return
    named = "" if "MLFLOW_TRACKING_URI" in os.environ else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
    raise UserError(
        f"the experiment {EXPERIMENT} was deleted in the tracking store at {uri}, which takes no runs for it until it is "
        f"restored: {named}mlflow experiments restore --experiment-id {experiment.experiment_id}"
    )


def _check_same_file(uri: str) -> None:
    """Refuse to write to a SQLite file that was deleted: open connections would, and nobody could read the result."""
    path = database(uri)
    if path is None:
        return
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
    varied: Sequence[str] = (),
) -> str:
    """The id of the sweep's parent run, created by the first call, which must come before parallel jobs start.

    Args:
        command: the command line that started the sweep, kept as a tag: a line for each that differs, the last one last.
        tune: keys whose best value the report picks on validation data, beside those of earlier commands: parts of a sweep
            need not all tune.
        margins: the config's margins, of which those that are set take the place of earlier commands'.
        varied: keys that differ between its runs, which the runs' names show.

    Raises:
        UserError: the store does not answer.
    """
    client, experiment_id = open_store(outputs)
    found = _find_parent(client, experiment_id, sweep)
    if found and not command:
        return found
    told: dict[str, str] = {}
    with lock(outputs / ".parent.lock"):
        found = _find_parent(client, experiment_id, sweep)
        path = outputs / "sweeps" / sweep / "sweep.json"
        if command:
            shared = client.get_run(found).data.tags if found else {}
            # another part may have been started from another folder of outputs
            earlier = {**read_json(path), **{name: shared[name] for name in TOLD if shared.get(name)}}
            told = _declared(earlier, tune, {key: one for key, one in (margins or {}).items() if one is not None})
            told["command"] = _with_command(str(earlier.get("command", "")), redact(command))
        run_id = _write_parent(client, experiment_id, found, path, sweep, told)
        if varied:
            before = read_json(path)
            known = [key for key in str(before.get("varied", "")).split(",") if key]
            write_json(path, {**before, "varied": ",".join(dict.fromkeys([*known, *varied]))})
        return run_id


def _declared(known: Mapping[str, Any], tune: Sequence[str], margins: Mapping[str, float]) -> dict[str, str]:
    """What a sweep tunes and which margins it has after a command, and the margins after each command that changed them."""
    before = str(known.get("margins", ""))
    try:
        earlier = dict(json.loads(before))
    except (ValueError, TypeError, RecursionError):  # none, or not as a sweep writes them
        before, earlier = "", {}
    now = json.dumps({**earlier, **margins})
    lines = str(known.get("declared", before)).splitlines()
    keys = [*filter(None, str(known.get("tune", "")).split(",")), *tune]
    declared = _newest(lines if lines[-1:] == [now] else [*lines, now])
    return {"tune": ",".join(dict.fromkeys(keys)), "margins": now, "declared": declared}


def _with_command(known: str, command: str) -> str:
    """The commands of a sweep, a line each, with `command` as the last; the oldest go where a tag has no room for all."""
    command = command.replace("\n", " ")[:TAG]
    return _newest([*(line for line in known.splitlines() if line != command), command])


def _newest(lines: list[str]) -> str:
    """The last lines, as many as a tag has room for."""
    while len("\n".join(lines)) > TAG:
        lines = lines[1:]
    return "\n".join(lines)


def note(commands: Sequence[str], verdicts: Sequence[str] = ()) -> str:
    """The description of a sweep's parent run, in Markdown: its verdicts as a list, and each command as code."""
    listed = "\n".join(f"- {line.strip()}" for line in verdicts)
    return "\n\n".join(filter(None, [listed, *(f"`{command}`" for command in commands)]))[:TAG]


def close_parent(outputs: Path, sweep: str) -> None:
    """Let the parent run end now: its duration is that of the sweep."""
    client, experiment_id = open_store(outputs)
    found = _find_parent(client, experiment_id, sweep)
    if found:
        client.set_terminated(found)


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
        for name in TOLD:
            client.set_tag(run_id, name, str(told.get(name, "")))
        if told.get("command"):
            client.set_tag(run_id, NOTE, note(told["command"].splitlines()))
        write_json(path, {**told, "sweep": sweep, "parent_run_id": run_id})
    return run_id


def delete_runs(outputs: Path, run_ids: Sequence[str], sweep: str = "") -> None:
    """Delete runs in MLflow's sense, and with `sweep` all runs of a sweep with their parent; `mlflow runs restore` undoes it.

    Raises:
        UserError: the store does not answer.
    """
    client, experiment_id = open_store(outputs)
    found = set(run_ids)
    if sweep:
        every = client.search_runs([experiment_id], filter_string=f"tags.sweep = '{sweep}'", max_results=50_000)
        found |= {run.info.run_id for run in every}
    for run_id in sorted(found):
        try:
            client.delete_run(run_id)
        except MlflowException as error:
            if error.error_code not in GONE:
                raise UserError(f"the tracking store did not delete run {run_id} ({first_line(error)}).") from error


def code_tags() -> dict[str, Any]:
    """Source, user and git commit of the code that runs, under MLflow's own tag names; the commit only in a checkout."""
    told = {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return told
    return told | ({"mlflow.source.git.commit": answer.stdout.strip()} if answer.returncode == 0 else {})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"
