"""The sweeper of Hydra that runs our sweeps: all runs at once, or with tuned keys round by round."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from foura.config import SWEEPER, TARGET, run_key
from foura.errors import UserError
from foura.logs import quiet
from foura.run import resume
from foura.sweep.on_ray import start_ray
from foura.sweep.plan import Job, compose, job_folder, job_overrides, run_status
from foura.sweep.tuning import UNTESTED, Overrides, Result, Tuning, check_grid

Plugins.instance()  # looks for plugins, and executes their modules again: a class that was imported before is another one
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

AROUND = 2.0  # seconds between looks at runs of other processes


class Results:
    """Reads the results of a sweep's runs from their folders; results of other configs in the same folders do not count."""

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.keys: dict[Overrides, str] = {}

    def __call__(self, job: Overrides) -> Result | None:
        folder = job_folder(self.config, job)
        status = run_status(folder)
        if not self.done(job):
            return None
        if status["state"] == "diverged":
            return Result("loss", None)
        metric = str(status.get("curve"))
        value = status.get("metrics", {}).get(f"best/{metric}")
        return None if value is None else Result(metric, float(value))

    def done(self, job: Overrides) -> bool:
        """True if the run has its result."""
        folder = job_folder(self.config, job)
        status = run_status(folder)
        if status["state"] not in resume.DONE:
            return False
        if job not in self.keys:  # composing takes a while
            self.keys[job] = run_key(compose(self.config, job, folder))
        return resume.done(status, self.keys[job])

    def running(self, job: Overrides) -> bool:
        """True while a process is at the run."""
        return run_status(job_folder(self.config, job))["state"] == "running"


def tuning_of(config: DictConfig) -> Tuning | None:
    """The tuning of a multirun config; None if nothing is tuned, or on the seeds of the comparison (tuning_seeds=[]).

    Raises:
        UserError: as of `Tuning`, or the sweeper is not this one.
    """
    if not config.tune:
        return None
    jobs = job_overrides(config)
    if not config.tuning_seeds:
        check_grid(jobs, config.tune)
        return None
    if config.hydra.runtime.choices["hydra/sweeper"] != SWEEPER:
        raise UserError(
            f"tune={list(config.tune)} goes with hydra/sweeper={SWEEPER}, the default: another sweeper picks runs by its own "
            "rule. Leave tune or that sweeper out."
        )
    return Tuning(jobs, list(config.tune), list(config.tuning_seeds), config.seed, Results(config))


def jobs_of(config: DictConfig, tuning: Tuning | None) -> list[Job]:
    """The runs of a sweep."""
    return [Job(tuple(one)) for one in job_overrides(config)] if tuning is None else tuning.jobs()


class Sweeper(BasicSweeper):
    """Hydra's own sweeper, with rounds of tuning runs before the comparison."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        quiet()  # joblib's advice is given by this process, not by those of the runs
        self.tuning = tuning_of(self.config)
        self.batch: list[list[str]] = []
        self.launched: set[Overrides] = set()
        self.told: set[Overrides] = set()
        launcher: Any = self.launcher
        if type(launcher).__name__ == "RayLauncher":
            start_ray(launcher.ray_cfg.init)
        return super().sweep(arguments)

    def is_done(self) -> bool:
        if self.tuning is None:
            return super().is_done()
        self.batch = self._next(self.tuning)
        return not self.batch

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        return super().get_job_batch() if self.tuning is None else self.batch

    def _next(self, tuning: Tuning) -> list[list[str]]:
        """The runs whose turn has come and that have no result; prints what was chosen."""
        config: Any = self.config
        results: Any = tuning.result
        while any(results.running(job) for job in self.launched if UNTESTED in job):
            time.sleep(AROUND)  # another process of this work queue is at one of them
        ready = [job.overrides for job in tuning.jobs() if not job.undecided and job.overrides not in self.launched]
        for cell in tuning.cells:
            if cell.decided and cell.name not in self.told:
                self.told.add(cell.name)
                print(tuning.said(cell), flush=True)
        self.launched |= set(ready)
        return [list(job) for job in ready if config.force or not results.done(job)]


def register() -> None:
    """Make the sweeper known to Hydra under a name in hydra_plugins, as it takes plugins from there alone."""
    module, _, name = TARGET.rpartition(".")
    sys.modules[module] = sys.modules[__name__]
    Plugins.instance().class_name_to_class[f"{module}.{name}"] = Sweeper
