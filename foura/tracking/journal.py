"""All that a run tells its tracking store, written to its folder first and delivered in order: training waits for no server.

tracking.jsonl in the run's folder has a line for each item, and lines that say how many the store has. What a store does
not take now is delivered later, and a store that was lost can be made again from these files (`foura sync`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

FILE = "tracking.jsonl"
RETRY = 5.0  # seconds between attempts while training goes on, at least
PATIENCE = 20.0  # seconds that the end of a run waits for a store that does not answer
SLOWEST = 0.1  # share of a run's time that may go into attempts that fail
# MLflow would otherwise try a dead server for minutes at every call
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


class Delivers(Protocol):
    """What takes an item to a store; returns the run's id, and raises whatever the store raises."""

    def __call__(self, run_id: str | None, item: dict[str, Any]) -> str: ...


class Outbox:
    """The items of one run and how many of them its store has.

    Args:
        deliver: takes one item to the store.
        folder: of the run; what an earlier process left there is taken up.

    Attributes:
        items: all of them, oldest first. delivered: how many the store has. run_id: None before the store knows the run.
        error: why the last attempt failed.
    """

    def __init__(self, deliver: Delivers, folder: Path) -> None:
        self._to_store, self.path = deliver, folder / FILE
        self.items: list[dict[str, Any]] = []
        self.delivered = 0
        self.run_id: str | None = None
        self.error, self.next_try = "", 0.0
        self._read()

    def begin(self) -> None:
        """Forget what there is: another run begins in this folder."""
        self.path.unlink(missing_ok=True)
        self.items, self.delivered, self.run_id = [], 0, None

    def send(self, item: Mapping[str, Any]) -> None:
        """Write an item down, and deliver it now unless the store failed a moment ago."""
        self.items.append(dict(item))
        self._write(dict(item))
        if time.monotonic() >= self.next_try:
            self.deliver()

    def deliver(self, patience: float = 0.0) -> bool:
        """Deliver what waits; False where the store still does not take it after `patience` seconds."""
        until = time.monotonic() + patience
        while self.delivered < len(self.items):
            began = time.monotonic()
            try:
                self.run_id = self._to_store(self.run_id, self.items[self.delivered])
            except Exception as error:  # of requests, of the database, of MLflow: each says "no" in its own way
                self.error = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
                now = time.monotonic()
                self.next_try = now + max(RETRY, (now - began) / SLOWEST)
                if now >= until:
                    return False
                time.sleep(1.0)
            else:
                self.delivered += 1
                self._write({"delivered": self.delivered, "run_id": self.run_id})
        self.next_try = 0.0
        return True

    def again(self) -> None:
        """The store has lost the run: everything is to be delivered once more."""
        self.delivered, self.run_id = 0, None
        self._write({"delivered": 0, "run_id": None})

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self) -> None:
        if not self.path.is_file():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            try:
                item = json.loads(line)
            except ValueError:
                continue  # cut short by a crash or a full disk
            if not isinstance(item, dict):
                continue
            if "delivered" in item:
                self.delivered, self.run_id = int(item["delivered"]), item["run_id"]
            else:
                self.items.append(item)
        self.delivered = min(self.delivered, len(self.items))
        if text and not text.endswith("\n"):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n")
