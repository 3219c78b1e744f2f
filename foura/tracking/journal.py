"""The journal of a run: everything for its tracking store is written to its folder first, so training waits for no server.

tracking.jsonl has a line per item, and lines that say how many items the store has. What the store does not take now is
delivered later, and a store that was lost can be made again from these files (`foura sync`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from foura.errors import first_line

FILE = "tracking.jsonl"
RETRY = 5.0  # seconds between attempts while training continues, at least
PATIENCE = 20.0  # seconds that the end of a run waits for a store that does not answer
SLOWEST = 0.1  # share of a run's time that failing attempts may take
KINDS = ("create", "params", "dataset", "metrics", "artifact", "reopen", "end")  # an item has one of these keys


class Deliver(Protocol):
    """Sends an item to a store; returns the run's id, and raises whatever the store raises."""

    def __call__(self, run_id: str | None, item: dict[str, Any]) -> str: ...


class Outbox:
    """The items of one run, and how many of them its store has.

    Args:
        deliver: sends one item to the store.
        folder: of the run. Items that an earlier process left there are loaded.

    Attributes:
        items: all items, oldest first. delivered: how many of them the store has.
        run_id: None before the store knows the run.
        error: why the last attempt failed; empty if it did not.
    """

    def __init__(self, deliver: Deliver, folder: Path) -> None:
        self._to_store, self.path = deliver, folder / FILE
        self.items: list[dict[str, Any]] = []
        self.delivered = 0
        self.run_id: str | None = None
        self.error, self.next_try = "", 0.0
        self._read()

    def begin(self) -> None:
        """Delete all items: another run begins in this folder."""
        self.path.unlink(missing_ok=True)
        self.items, self.delivered, self.run_id = [], 0, None

    def send(self, item: Mapping[str, Any]) -> None:
        """Write an item to the journal, and deliver it now unless the store failed a moment ago."""
        self.items.append(dict(item))
        self._write(dict(item))
        if time.monotonic() >= self.next_try:
            self.deliver()

    def deliver(self, patience: float = 0.0) -> bool:
        """Deliver the items that wait; false if the store still does not take them after `patience` seconds."""
        until = time.monotonic() + patience
        while self.delivered < len(self.items):
            began = time.monotonic()
            try:
                self.run_id = self._to_store(self.run_id, self.items[self.delivered])
            except Exception as error:  # requests, the database and MLflow each raise their own kinds
                self.error = first_line(error)
                now = time.monotonic()
                self.next_try = now + max(RETRY, (now - began) / SLOWEST)
                if now >= until:
                    return False
                time.sleep(1.0)
            else:
                self.delivered += 1
                self._write({"delivered": self.delivered, "run_id": self.run_id})
        self.error, self.next_try = "", 0.0
        return True

    def again(self) -> None:
        """Mark every item as not delivered: the store has lost the run."""
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
            except (ValueError, RecursionError):
                continue  # cut short by a crash or a full disk
            if not isinstance(item, dict):
                continue
            if isinstance(item.get("delivered"), int):
                self.delivered, self.run_id = item["delivered"], item.get("run_id")
            elif self._sound(item):
                self.items.append(item)
        self.delivered = min(self.delivered, len(self.items))
        if text and not text.endswith("\n"):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n")

    def _sound(self, item: dict[str, Any]) -> bool:
        """True for an item of a known kind. Run folders are untrusted: an artifact outside of its folder is not sent."""
        if "artifact" in item:
            folder = self.path.parent.resolve()
            return (folder / str(item["artifact"])).resolve().is_relative_to(folder)
        return any(kind in item for kind in KINDS)
