"""What a tracking store would not take is kept on disk and delivered later, in order: training never waits for a server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from foura.tracking.status import read_json, write_json

FILE = "outbox.json"
RETRY = 5.0  # seconds between attempts while training goes on
PATIENCE = 20.0  # seconds that the end of a run waits for a store that does not answer
GONE = (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE))  # no run, or a hidden one
# MLflow would otherwise try a dead server for minutes at every call
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


class Outbox:
    """Delivers to one MLflow run.

    Args:
        folder: of the run; what waits is kept in its outbox.json, and an earlier process's is taken up from there.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: Path | None) -> None:
        self.client, self.run_id, self.path = client, run_id, None if folder is None else folder / FILE
        kept = read_json(self.path) if self.path is not None else {}
        self.waiting: list[dict[str, Any]] = kept["items"] if kept.get("run_id") == run_id else []
        self.tried = -RETRY
        self.error = ""

    def send(self, item: Mapping[str, Any]) -> None:
        """Deliver an item now, or keep it: {"metrics", "step", "time"}, {"artifact", "under"} or {"end"}."""
        behind = bool(self.waiting)
        self.waiting.append(dict(item))
        if not behind or time.monotonic() - self.tried > RETRY:
            self.deliver()
        elif self.path is not None:
            self._keep()

    def deliver(self, patience: float = 0.0) -> bool:
        """Deliver what waits; False where the store still does not answer after `patience` seconds."""
        until = time.monotonic() + patience
        behind = self.path is not None and self.path.exists()
        while self.waiting:
            try:
                self._deliver(self.waiting[0])
                self.waiting.pop(0)
            except Exception as error:  # of requests, of the database, of MLflow: each says "no" in its own way
                self.error = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
                self.tried = time.monotonic()
                self._keep()
                behind = True
                if isinstance(error, MlflowException) and error.error_code in GONE:
                    return False
                if time.monotonic() >= until:
                    return False
                time.sleep(1.0)
        if behind and self.path is not None:
            self.path.unlink(missing_ok=True)
        return True

    def _deliver(self, item: dict[str, Any]) -> None:
        if "metrics" in item:
            points = [Metric(key, value, item["time"], item["step"]) for key, value in item["metrics"].items()]
            self.client.log_batch(self.run_id, metrics=points)
        elif "artifact" in item:
            self.client.log_artifact(self.run_id, item["artifact"], item["under"])
        else:
            state = item["end"]
            self.client.set_tag(self.run_id, "state", state)
            ended = {"finished": "FINISHED", "interrupted": "KILLED"}.get(state, "FAILED")
            self.client.set_terminated(self.run_id, ended)

    def _keep(self) -> None:
        if self.path is not None:
            write_json(self.path, {"run_id": self.run_id, "error": self.error, "items": self.waiting})
