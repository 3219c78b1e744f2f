"""A sweep from its first run to its report: the parent run, the plan, the progress, and the last line."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from foura import distributed
from foura.config import outputs_dir
from foura.errors import UserError
from foura.families import family_of
from foura.sweep.plan import job_folders, plan, plan_lines, states
from foura.tracking.status import DONE, read_json


class SweepCallback(Callback):
    """Hydra callback of multiruns.

    The store and the parent run are made in the launching process before any job starts: several processes opening a
    fresh SQLite store at once race for its schema.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if distributed.started():
            sys.exit(
                "error: a sweep starts the processes of its runs itself: python train.py -m trainer=ddp …, no torchrun."
            )
        self.folders = job_folders(config)
        if config.plan:
            try:
                print("\n".join(plan_lines(plan(config))))
            except UserError as error:
                sys.exit(f"error: {error}")
            sys.exit(0)
        self.sweep, self.outputs = Path(config.hydra.sweep.dir).name, outputs_dir(config)
        from foura.tracking.store import parent_run

        told = [text for text in config.hydra.overrides.hydra if text != "hydra.mode=MULTIRUN"]
        command = " ".join(["python train.py -m", *told, *config.hydra.overrides.task])
        try:
            parent_run(self.outputs, self.sweep, command, list(config.tune), config.margins)
        except UserError as error:
            sys.exit(f"error: {error}")  # Hydra turns what a callback raises into a warning
        self.began, self.done_before = time.monotonic(), 0 if config.force else self._count(*DONE)
        waiting = len(self.folders) - self.done_before
        print(f"sweep {self.sweep}: {len(self.folders)} runs, {self.done_before} done, {waiting} to run", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if not hasattr(self, "folders"):  # a single run
            return
        if not job_return._return_value:
            return  # it had its result before, or another process runs it
        path = Path(config.hydra.runtime.output_dir) / "status.json"
        status, now = read_json(path), states(self.folders)
        done = sum(now[state] for state in DONE)
        bad = "".join(f", {now[state]} {state}" for state in ("diverged", "failed", "interrupted") if now[state])
        ended = max(1, done + now["failed"] - self.done_before)
        left = (time.monotonic() - self.began) / ended * (len(self.folders) - done - now["failed"])
        print(
            f"{_result(status, config)} {path.parent.name}  [{done} of {len(self.folders)} done{bad}; ETA {left / 60:.0f} min]",
            flush=True,
        )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not hasattr(self, "folders"):
            return
        now = states(self.folders)
        print(f"sweep {self.sweep}: " + ", ".join(f"{count} {state}" for state, count in sorted(now.items())))
        if now["running"]:
            print(f"{now['running']} runs are running in other processes; the last to end makes the report")
        elif now["finished"]:
            self._report()
        if now["failed"] or now["interrupted"]:
            sys.exit(1)

    def _report(self) -> None:
        from foura.report.page import report

        try:
            print(f"report: {os.path.relpath(report(self.outputs, self.sweep))}")
        except Exception as error:  # the runs are safe whatever becomes of their page
            print(f"the report could not be made ({error}); `foura report {self.sweep}` tries again.")

    def _count(self, *wanted: str) -> int:
        now = states(self.folders)
        return sum(now[state] for state in wanted)


def _result(status: dict[str, Any], config: DictConfig) -> str:
    """How a run ended, with the metric that it is judged by."""
    metric = family_of(config).headline(config.dataset.format)
    value = status.get("metrics", {}).get(metric.column)
    return status.get("state", "") + ("" if value is None else f", test {metric.label} {value:.3f}:")
