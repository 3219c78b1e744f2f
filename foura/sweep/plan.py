"""The runs of a sweep: their overrides, folders and states, and a plan of those that are left; from status.json alone."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, flag_override

from foura.config import check, check_used, folder_name, run_key
from foura.errors import UserError
from foura.run import resume
from foura.tracking.parts import part
from foura.tracking.status import held, read_json


def job_overrides(config: DictConfig) -> list[list[str]]:
    """The overrides of every run of a multirun config, as Hydra's own sweeper makes them."""
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *config.hydra.overrides.task])
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return batch


def varied_keys(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values differ between the jobs of a sweep, in their order."""
    values: dict[str, set[str]] = {}
    for overrides in jobs:
        for text in overrides:
            key, _, value = text.lstrip("+").partition("=")
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.lstrip("+").partition("=")[0]


def job_folder(config: DictConfig, overrides: Sequence[str]) -> Path:
    """The folder of one run of a multirun config."""
    return Path(config.hydra.sweep.dir) / folder_name(_joined(config, overrides))


def _joined(config: DictConfig, overrides: Sequence[str]) -> str:
    dirname = config.hydra.job.config.override_dirname
    return dirname.item_sep.join(sorted(text for text in overrides if key_of(text) not in dirname.exclude_keys))


def run_status(folder: Path) -> dict[str, Any]:
    """The status.json of a run with its true "state".

    That is "waiting" for a run that never started, "interrupted" for one whose process was killed, and "unreadable" for a
    file that is damaged.
    """
    path = folder / "status.json"
    status = read_json(path)
    if not status:
        return {"state": "unreadable" if path.exists() else "waiting"}
    if status.get("state") == "running" and not held(folder):
        status["state"] = "interrupted"
    return {"state": "unreadable", **status}


def states(folders: list[Path]) -> Counter[str]:
    """The number of runs in each state."""
    return Counter(run_status(folder)["state"] for folder in folders)


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        overrides: those of the run. undecided: keys among them whose values follow from the results of other runs; these
            here are as good as others to plan with.
    """

    overrides: tuple[str, ...]
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """One run of a plan.

    Attributes:
        state: "finished" or "diverged" for a run with a result, else "to run", with the state that it was left in.
        seconds, megabytes: median of finished runs like it; None if there are none.
    """

    name: str
    state: str
    seconds: float | None
    megabytes: float | None


def plan(config: DictConfig, jobs: Sequence[Job]) -> list[Planned]:
    """The runs that a multirun config would execute, with every config composed and checked.

    Raises:
        UserError: the first run whose config is not valid.
    """
    folders = [job_folder(config, job.overrides) for job in jobs]
    composed = [compose(config, job.overrides, folder) for job, folder in zip(jobs, folders, strict=True)]
    known: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cfg, folder in zip(composed, folders, strict=True):
        status = run_status(folder)
        if status["state"] == "finished" and "seconds" in status:
            known.setdefault(_kind(cfg), []).append((status["seconds"], _size(folder)))
    planned = []
    for cfg, folder, job in zip(composed, folders, jobs, strict=True):
        like = known.get(_kind(cfg)) or [one for ones in known.values() for one in ones]
        seconds, size = (statistics.median(column) for column in zip(*like, strict=True)) if like else (None, None)
        state = "to run" if job.undecided else _planned_state(cfg, run_status(folder))
        planned.append(Planned(_name(config, job), state, seconds, size))
    return planned


def compose(config: DictConfig, overrides: Sequence[str], folder: Path) -> DictConfig:
    """The checked config of one run.

    Raises:
        UserError: it is not valid.
    """
    cfg = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
    HydraConfig.instance().set_config(cfg)
    with flag_override(cfg, ["readonly", "struct"], False):
        cfg.pop("hydra")
    try:
        check(cfg)
        check_used(cfg)
    except UserError as error:
        raise UserError(f"{folder.name}: {error}") from None
    return cfg


def _name(config: DictConfig, job: Job) -> str:
    """The name of a run's folder, with a question mark for what is undecided."""
    shown = [f"{key_of(text)}=?" if key_of(text) in job.undecided else text for text in job.overrides]
    return _joined(config, shown) if job.undecided else job_folder(config, shown).name


def _planned_state(cfg: DictConfig, status: dict[str, Any]) -> str:
    if resume.done(status, run_key(cfg)) and not cfg.force:
        return status["state"]
    return "to run" if status["state"] == "waiting" else f"to run ({status['state']})"


def _kind(cfg: DictConfig) -> tuple[str, str]:
    """Runs of one kind take about equally long."""
    return cfg.adapter.name, cfg.backbone.family


def plan_lines(planned: list[Planned]) -> list[str]:
    """The plan as text: a line per run, then what is left to run."""
    todo = [run for run in planned if run.state.startswith("to run")]
    lines = [f"{run.state:<22}{_amount(run.seconds)}  {run.name}" for run in planned]
    if any(run.seconds is None for run in todo):
        cost = "time and disk unknown until one of them has run"
    else:
        minutes = sum(run.seconds or 0 for run in todo) / 60
        cost = f"about {minutes:.0f} min one after another, {sum(run.megabytes or 0 for run in todo):.0f} MB"
    return [*lines, f"{len(planned)} runs, {len(planned) - len(todo)} done, {len(todo)} to run: {cost}"]


def _amount(seconds: float | None) -> str:
    return f"{'?' if seconds is None else format(seconds, '.0f'):>6} s"


def _size(folder: Path) -> float:
    """Megabytes that a run takes: its folder, and the same again as artifacts."""
    return 2 * sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def sweep_folder(outputs: Path, sweep: str) -> Path:
    """The folder of a sweep that was started.

    Raises:
        UserError: there is no sweep of that name; the sentence lists the others.
    """
    folder = part(outputs, "sweeps") / sweep
    if not folder.is_dir():
        names = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
        raise UserError(f"there is no sweep {sweep} in {outputs}. Sweeps there: {', '.join(names) or 'none'}.")
    return folder
