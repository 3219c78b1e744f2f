"""The journal of a run: everything for its tracking store is written to its folder first, so training waits for no server.

tracking.jsonl has a line per item, and lines that say how many items the store has. What the store does not take now is
delivered later, and a store that was lost can be made again from these files (`foura sync`).
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from foura.atomic import append_text
from foura.errors import UserError, first_line
from foura.tracking.typed import is_delivered, is_item
from foura.untrusted import JOURNAL, Folder

FILE = "tracking.jsonl"
RETRY = 5.0  # seconds between attempts while training continues, at least
PATIENCE = 20.0  # seconds that the end of a run waits for a store that does not answer
SHARE = 0.02  # of a run's time that deliveries may take while it trains
AT_ONCE = 50  # items of metrics in one call


class Deliver(Protocol):
    """Sends items to a store: several of metrics, or one of any kind. Returns the run's id; raises what the store raises."""

    def __call__(self, run_id: str | None, items: list[dict[str, Any]]) -> str: ...


class Outbox:
    """The items of one run, and how many of them its store has.

    Args:
        deliver: sends items to the store.
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
        self.error, self.next_try, self.next_metrics = "", 0.0, 0.0
        self._read()

    def begin(self) -> None:
        """Delete all items: another run begins in this folder."""
        self.path.unlink(missing_ok=True)
        self.items, self.delivered, self.run_id = [], 0, None

    def send(self, item: Mapping[str, Any]) -> None:
        """Write an item to the journal, and deliver what waits unless the store failed or was slow a moment ago."""
        self.items.append(dict(item))
        self._write(dict(item))
        if time.monotonic() >= max(self.next_try, self.next_metrics if "metrics" in item else 0.0):
            self.deliver()

    def deliver(self, patience: float = 0.0) -> bool:
        """Deliver the items that wait; false if the store still does not take them after `patience` seconds."""
        until = time.monotonic() + patience
        while self.delivered < len(self.items):
            began, items = time.monotonic(), self._next()
            try:
                self.run_id = self._to_store(self.run_id, items)
            except Exception as error:  # requests, the database and MLflow each raise their own kinds
                self.error = first_line(error)
                now = time.monotonic()
                self.next_try = now + max(RETRY, (now - began) / SHARE)
                if now >= until:
                    return False
                time.sleep(1.0)
            else:
                self.delivered += len(items)
                self._write({"delivered": self.delivered, "run_id": self.run_id})
                self.next_metrics = time.monotonic() + (time.monotonic() - began) / SHARE
        self.error, self.next_try = "", 0.0
        return True

    def _next(self) -> list[dict[str, Any]]:
        """The next items that one call can deliver: metrics together, as a call costs as much as a small training step."""
        waiting = self.items[self.delivered : self.delivered + AT_ONCE]
        metrics = list(itertools.takewhile(lambda item: "metrics" in item, waiting))
        return metrics or waiting[:1]

    def again(self) -> None:
        """Mark every item as not delivered: the store has lost the run."""
        self.delivered, self.run_id = 0, None
        self._write({"delivered": 0, "run_id": None})

    def _write(self, line: dict[str, Any]) -> None:
        append_text(self.path, json.dumps(line) + "\n")

    def _read(self) -> None:
        """Load the items. Run folders are untrusted: an item that no run could have written is left out.

        Raises:
            UserError: something other than a file, or a file of no run's size, is in the journal's place.
        """
        folder = Folder(self.path.parent)
        if not folder.has(FILE):
            return
        text = folder.read(FILE, JOURNAL).decode("utf-8", errors="replace")
        for line in text.split("\n"):
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                continue  # cut short by a crash or a full disk
            if not isinstance(item, dict):
                continue
            if is_delivered(item):
                self.delivered, self.run_id = item["delivered"], item.get("run_id")
            elif is_item(item) and not ("artifact" in item and _leads_out(folder, item["artifact"])):
                self.items.append(item)
        self.delivered = min(self.delivered, len(self.items))
        if text and not text.endswith("\n"):
            append_text(self.path, "\n")


def _leads_out(folder: Folder, artifact: str) -> bool:
    """True for an artifact outside of the run's folder, through a link too."""
    try:
        folder.place(artifact)
    except UserError:
        return True
    return False
