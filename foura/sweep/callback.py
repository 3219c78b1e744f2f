"""A sweep from its first run to its report: the parent run, the plan, the progress, and the last line."""

import functools
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from foura import distributed
from foura.config import outputs_dir, refuse_deleted
from foura.errors import UserError, first_line, traceback_of
from foura.families import family_of
from foura.files import from_here
from foura.run.naming import config_flags
from foura.sweep.plan import job_folder, job_overrides, plan, plan_lines, states, varied_keys
from foura.sweep.sweeper import jobs_of, tuning_of
from foura.sweep.tuning import Tuning
from foura.tracking.parts import agree_to_links
from foura.tracking.status import DONE, read_json


def ends_the_program(method: Callable[..., None]) -> Callable[..., None]:
    """A method of a Hydra callback whose errors end the program: Hydra itself turns them into warnings and goes on."""

    @functools.wraps(method)
    def guarded(*arguments: Any, **named: Any) -> None:
        try:
            method(*arguments, **named)
        except UserError as error:
            sys.exit(f"error: {error}")
        except Exception as error:
            sys.exit(f"{traceback_of(error)}error: {method.__qualname__} failed, see above; the sweep ends here.")

    return guarded


class SweepCallback(Callback):
    """Hydra callback of multiruns; does nothing in a single run.

    The launching process creates the store and the parent run before any job starts: several processes that open a new
    SQLite store at the same time race for its schema.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = []  # of the sweep's runs

    @ends_the_program
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if distributed.started():
            raise UserError(
                "a sweep starts the processes of its runs itself: python train.py -m trainer=ddp …, without torchrun."
            )
        refuse_deleted(config)
        tuning = tuning_of(config)
        if config.plan:
            print("\n".join(plan_lines(plan(config, jobs_of(config, tuning)))))
            sys.exit(0)
        agree_to_links(outputs_dir(config))
        self._start(config, tuning)

    def _start(self, config: DictConfig, tuning: Tuning | None) -> None:
        from foura.tracking.store import parent_run

        possible = job_overrides(config) if tuning is None else tuning.every()
        self.folders = [job_folder(config, overrides) for overrides in possible]
        self.runs = len(self.folders) if tuning is None else sum(tuning.most())
        self.sweep, self.outputs = Path(config.hydra.sweep.dir).name, outputs_dir(config)
        varied = varied_keys(job_overrides(config))
        parent_run(self.outputs, self.sweep, _command(config), list(config.tune), config.margins, varied)
        now = states(self.folders)
        self.began, self.done_before = time.monotonic(), 0 if config.force else sum(now[state] for state in DONE)
        if tuning is None:
            told = f"{self.runs} runs, {self.done_before} done, {self.runs - self.done_before} to run"
        else:
            seeds = ", ".join(map(str, tuning.seeds))
            tuned, compared = tuning.most()
            told = f"at most {tuned} tuning runs (seeds {seeds}), then {compared} to compare; {self.done_before} done"
        print(f"sweep {self.sweep}: {told}", flush=True)

    @ends_the_program
    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if not self.folders or not job_return._return_value:
            return  # a single run; or a run that had its result before, or that another process executes
        path = Path(config.hydra.runtime.output_dir) / "status.json"
        status, now = read_json(path), states(self.folders)
        done = sum(now[state] for state in DONE)
        bad = "".join(f", {now[state]} {state}" for state in ("diverged", "failed", "interrupted") if now[state])
        ended = max(1, done + now["failed"] - self.done_before)
        left = (time.monotonic() - self.began) / ended * max(0, self.runs - done - now["failed"])
        print(
            f"{_result(status, config)} {path.parent.name}  [{done} of {self.runs} done{bad}; ETA {left / 60:.0f} min]",
            flush=True,
        )

    @ends_the_program
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not self.folders:
            return
        now, tuning = states(self.folders), tuning_of(config)
        if tuning is not None:
            now["waiting"] = sum(
                bool(job.undecided) for job in tuning.jobs()
            )  # of all values that are possible, most never run
        print(f"sweep {self.sweep}: " + ", ".join(f"{count} {state}" for state, count in sorted((+now).items())))
        self._close()
        if now["running"]:
            print(f"{now['running']} runs are running in other processes; the last one to end makes the report")
        elif now["finished"] or now["diverged"]:
            self._report()
        if now["failed"] or now["interrupted"]:
            sys.exit(1)

    def _close(self) -> None:
        from foura.tracking.store import close_parent

        try:
            close_parent(self.outputs, self.sweep)
        except UserError as error:  # only the duration that the parent run shows
            print(f"the parent run in MLflow could not be closed ({error})")

    def _report(self) -> None:
        from foura.report.page import VERDICTS, report
        from foura.tracking.store import open_store
        from foura.tracking.ui import base_address, runs_address

        try:
            page = report(self.outputs, self.sweep)
            print((page.parent / VERDICTS).read_text(encoding="utf-8").rstrip())
            print(f"report: {from_here(page)} ({page.as_uri()})")
            base, outputs = base_address(self.outputs), from_here(self.outputs)
            print(f"runs: foura ui{'' if outputs == 'outputs' else ' ' + outputs} --open")
            print(f"      {runs_address(base, open_store(self.outputs)[1], self.sweep)}")
        except Exception as error:  # whatever happens to the report, the runs are safe
            print(f"the report could not be made ({first_line(error)}); `foura report {self.sweep}` tries again.")


def _command(config: DictConfig) -> str:
    """The command line of the sweep."""
    hydra = config.hydra
    given = [text for text in hydra.overrides.hydra if text != "hydra.mode=MULTIRUN"]
    return shlex.join(["python", "train.py", "-m", *config_flags(hydra), *given, *hydra.overrides.task])


def _result(status: dict[str, Any], config: DictConfig) -> str:
    """The state that a run ended in, with its main metric on validation data: test data answers at the end alone."""
    metric = family_of(config).curve(config.dataset.format)
    value = status.get("metrics", {}).get(f"best/{metric.key}")
    return status.get("state", "") + ("" if value is None else f", validation {metric.label} {value:.3f}:")
