"""One run in the MLflow store: created or reopened, its metrics and artifacts, and its end.

A store that does not answer stops no run: what it does not take now waits in the run's folder (`foura.tracking.journal`).
"""

import functools
import hashlib
import importlib.metadata
import platform
import posixpath
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.tracking import MlflowClient

from foura.errors import UserError
from foura.escape import redact
from foura.tracking import journal
from foura.tracking.store import GONE, TAG, UNKNOWN, artifacts_of, code_tags, open_store, parent_run
from foura.untrusted import Folder

PARENT_TAG = "mlflow.parentRunId"
AT_ONCE = 100  # params that MLflow takes in a call
METRICS_AT_ONCE = 1000  # and values of metrics
KEY = 250  # characters of a param's key that it takes
VALUES = (6000, 500, 250)  # characters of a value: now, and on servers of earlier versions
ENDS = {"finished": "FINISHED", "interrupted": "KILLED"}  # MLflow's status by our state; FAILED for the others


class TrackedRun:
    """One run in the store.

    Args:
        outputs: the folder of the store. folder: of the run, with tracking.jsonl and the files that become artifacts.
    """

    def __init__(self, outputs: Path, folder: Path) -> None:
        self.outputs, self.folder = outputs, folder
        self.outbox = journal.Outbox(self._deliver, folder)

    @property
    def run_id(self) -> str | None:
        """The id in MLflow; None as long as the store does not know the run."""
        return self.outbox.run_id

    @property
    def error(self) -> str:
        """Why the store did not take the last item; empty if it did."""
        return self.outbox.error

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics, all in one call."""
        self.outbox.send({"metrics": dict(metrics), "step": step, "time": int(time.time() * 1000)})

    def log_artifact(self, path: Path, under: str | None = None) -> None:
        """Log a file or folder of the run's folder, in the artifact folder `under`."""
        self.outbox.send({"artifact": str(path.relative_to(self.folder)), "under": under})

    def logged_steps(self, metric: str) -> set[int]:
        """The steps at which a metric was logged, delivered or not."""
        return {item["step"] for item in self.outbox.items if metric in item.get("metrics", {})}

    def reopen(self) -> None:
        """Set the run back to running."""
        self.outbox.send({"reopen": True})

    def close(self, state: str) -> bool:
        """End the run in the state that it ended in; false if the store is behind."""
        self.outbox.send({"end": state})
        return self.outbox.deliver(journal.PATIENCE)

    def stage(self) -> str:
        """Where the run stands in the store.

        Returns:
            "none": nothing was ever logged. "there", or will be once the journal is delivered. "hidden": a user deleted it.
            "lost": the store has no such run, or its run of this id is another one, so that the whole journal is delivered
            once more, into a run of its own. "": it does not answer.
        """
        if not self.outbox.items:
            return "none"
        if self.run_id is None:
            return "there"
        try:
            client, _ = open_store(self.outputs)
            found = client.get_run(self.run_id)
        except Exception as error:  # requests, the database and MLflow each raise their own kinds
            if not isinstance(error, MlflowException) or error.error_code != UNKNOWN:
                return ""
            self.outbox.again()
            return "lost"
        if found.data.tags.get("uid") not in self._uids():  # journals come from other people, and name any id
            self.outbox.again()
            return "lost"
        return "there" if found.info.lifecycle_stage == "active" else "hidden"

    def _uids(self) -> set[str]:
        """The one that the journal's run was created with."""
        return {item["create"]["tags"]["uid"] for item in self.outbox.items if "create" in item}

    def _deliver(self, run_id: str | None, items: list[dict[str, Any]]) -> str:
        client, experiment_id = open_store(self.outputs)
        item = items[0]
        if run_id is None:
            if "create" not in item:
                raise UserError(
                    f"its {journal.FILE} does not begin with the line that says what run it is; its command with force=true "
                    "runs it again"
                )
            return self._create(client, experiment_id, item["create"])
        if "params" in item:
            _log_params(client, run_id, item["params"])
        elif "dataset" in item:
            _log_dataset(client, run_id, item["dataset"])
        elif "metrics" in item:
            points = [
                Metric(key, value, one["time"], one["step"]) for one in items for key, value in one["metrics"].items()
            ]
            for start in range(0, len(points), METRICS_AT_ONCE):
                client.log_batch(run_id, metrics=points[start : start + METRICS_AT_ONCE])
        elif "artifact" in item:
            path = Folder(self.folder).whole(item["artifact"])
            if path is not None:  # else a user has deleted it since
                artifacts_of(self.outputs, client).log(run_id, path, item["under"])
        elif "reopen" in item:
            client.update_run(run_id, status="RUNNING")
        elif "end" in item:
            client.set_tag(run_id, "state", item["end"])
            client.set_terminated(run_id, ENDS.get(item["end"], "FAILED"))
        return run_id

    def _create(self, client: MlflowClient, experiment_id: str, run: dict[str, Any]) -> str:
        """Create the run, or find it: a process that crashed here may have created it without writing that down."""
        tags, sweep = dict(run["tags"]), run["sweep"]
        query = f"tags.uid = '{tags['uid']}'"
        found = client.search_runs([experiment_id], filter_string=query, max_results=1)
        if found:
            run_id = found[0].info.run_id
        else:
            if sweep is not None:
                _hide(client, experiment_id, sweep, tags["key"], run["replaces"])
                tags[PARENT_TAG] = parent_run(self.outputs, sweep)
            made = client.create_run(experiment_id, run_name=run["name"], tags=tags, start_time=run["time"])
            run_id = made.info.run_id
        _log_params(client, run_id, run.get("params", {}))  # journals of 0.1.0 have them here
        return run_id

    def mend_artifacts(self) -> bool:
        """Log again what the store had and no longer has, because its folder was moved; true if there was any."""
        if self.run_id is None:
            return False
        client, _ = open_store(self.outputs)
        artifacts, mended = artifacts_of(self.outputs, client), False
        for item in self.outbox.items[: self.outbox.delivered]:
            path = Folder(self.folder).whole(item["artifact"]) if "artifact" in item else None
            if path is not None and artifacts.lacks(self.run_id, path, item["under"]):
                artifacts.log(self.run_id, path, item["under"])
                mended = True
        return mended


class Untracked(TrackedRun):
    """The run in processes other than rank 0: nothing is recorded."""

    run_id = None
    error = ""

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
    dataset: Mapping[str, str] | None = None,
) -> TrackedRun:
    """A new MLflow run with its params and tags; in a sweep under the sweep's parent run.

    Args:
        tags: with the run's "key".
        replaces: in a sweep: the id of the run that this folder had before. It is hidden, as are others with the same key, so
            that no result counts twice; `mlflow runs restore` brings a hidden run back.
        dataset: name, digest, source and profile of the data.

    Raises:
        UserError: outside a sweep, the store does not answer. (A sweep checks that when it starts.)
    """
    if sweep is None:
        open_store(outputs)
    run = TrackedRun(outputs, folder)
    run.outbox.begin()
    told = {**tags, "role": "run", "uid": uuid.uuid4().hex, "versions": versions(), **code_tags()}
    described = {
        "name": redact(name),
        "tags": {key: redact(str(value))[:TAG] for key, value in told.items()},
        "sweep": sweep,
        "replaces": replaces,
        "time": int(time.time() * 1000),
    }
    run.outbox.send({"create": described})
    run.outbox.send({"params": {key: redact(str(value)) for key, value in params.items()}})
    if dataset is not None:
        run.outbox.send({"dataset": {key: redact(str(value)) for key, value in dataset.items()}})
    return run


def _log_dataset(client: MlflowClient, run_id: str, told: Mapping[str, str]) -> None:
    """List the data among the run's inputs; servers from before MLflow 2.4 have no place for it."""
    dataset = Dataset(told["name"][:500], told["digest"], "local", told["source"], profile=told["profile"])
    try:
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(ENDPOINT_NOT_FOUND):
            raise


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log params, as often as it is asked for; their keys are made legal, and values too long for the store are cut."""
    for longest in VALUES:
        made = [Param(legal_key(key), _cut(value, longest)) for key, value in params.items()]
        try:
            for start in range(0, len(made), AT_ONCE):
                client.log_batch(run_id, params=made[start : start + AT_ONCE])
            return
        except MlflowException as error:
            shorter = error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE) and "length" in str(error)
            if not shorter or longest == VALUES[-1]:
                raise


def legal_key(key: str) -> str:
    """A param's key that MLflow takes: its characters are letters, digits and "_-. :/", and it is a path in its simplest form.

    A key that is not gets others in their place, and a hash that keeps it apart from the keys that would become the same.
    """
    legal = posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", key)).lstrip("/")
    if legal == key and len(key) <= KEY and key != "." and not key.startswith(".."):
        return key
    return f"{legal.replace('..', '_')[: KEY - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _cut(value: str, longest: int) -> str:
    """The value, or its beginning with a hash of the whole: values that differ in what is cut off stay different."""
    if len(value) <= longest:
        return value
    return f"{value[: longest - 20]} … {hashlib.sha256(value.encode()).hexdigest()[:16]}"


def _hide(client: MlflowClient, experiment_id: str, sweep: str, key: str, run_id: str | None) -> None:
    """Delete, in MLflow's sense, the earlier runs of one experiment in a sweep.

    They are searched by key too: a process that was killed between creating its run and writing status.json left a run
    that no status.json names. A run of another sweep, which a journal of somebody else may name, stays.
    """
    found = set()
    for asked in (f"tags.key = '{key}'", f"attributes.run_id = '{run_id}'"):
        query = f"tags.sweep = '{sweep}' and tags.role = 'run' and {asked}"
        found |= {run.info.run_id for run in client.search_runs([experiment_id], filter_string=query)}
    for stale in found:
        try:
            client.delete_run(stale)
        except MlflowException as error:
            if error.error_code not in GONE:
                raise


@functools.cache
def versions() -> str:
    """Versions that the numbers may depend on, beside our own code: Python, its packages and the processor."""
    packages = (
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "peft", "transformers", "diffusers", "timm")
    )
    return f"python {platform.python_version()}, {', '.join(packages)}, {platform.machine()}"
