"""The run in the tracking store: started or resumed, and closed with the state in which the run ended."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from foura import distributed
from foura.config import outputs_dir, run_key, scientific
from foura.data.run_data import RunData
from foura.methods import method_of
from foura.methods.state import adapter_parameters
from foura.run import resume
from foura.run.naming import command_of, run_name
from foura.run.start_from import described
from foura.tracking.status import RunStatus, state_of
from foura.tracking.store import NOTE
from foura.tracking.tracked_run import TrackedRun, Untracked, start_run


@contextmanager
def tracked_run(
    cfg: DictConfig, status: RunStatus, data: RunData, model: nn.Module, about: str, sweep: str | None, console: Console
) -> Iterator[tuple[TrackedRun, Path, bool]]:
    """Context of a run from its training to its result: (the run in MLflow, the path of its checkpoint, true if it resumes).

    Processes other than rank 0 get a run that records nothing. `status` gets the run's id.
    """
    checkpoint = Path(distributed.broadcast(str(status.checkpoint)))
    tracked: TrackedRun = Untracked()
    resumed = False
    if distributed.is_main():
        tracked = TrackedRun(outputs_dir(cfg), checkpoint.parent)
        resumed = resume.resumes(checkpoint, lambda: adapter_parameters(model), tracked.stage, console.print)
        if resumed:
            tracked.reopen()
        else:
            folder = tracked.folder
            told = scientific(cfg), {**tags(cfg, data, sweep), "about": about, NOTE: command_of(folder)}
            tracked = start_run(
                tracked.outputs,
                folder,
                run_name(cfg, folder, sweep),
                *told,
                sweep,
                replaces=status.previous.get("run_id"),
                dataset=_dataset(cfg, data),
            )
    resumed = distributed.broadcast(resumed)
    status.write("running", run_id=tracked.run_id)
    if resumed:
        title = f"{cfg.adapter.name} r{cfg.rank} seed {cfg.seed}"
        console.print(f"{title}: resumes after {resume.place(checkpoint)} (force=true starts anew)")
    try:
        yield tracked, checkpoint, resumed
    except BaseException as error:
        tracked.close(state_of(error))
        raise
    if not tracked.close("finished"):
        console.print(f"tracking is behind ({tracked.error}): `foura sync` delivers what {status.path.parent} keeps")
    status.fields["run_id"] = tracked.run_id


def _dataset(cfg: DictConfig, data: RunData) -> dict[str, str]:
    """The data as MLflow lists it, by its fingerprint."""
    return {
        "name": cfg.dataset.name,
        "digest": data.fingerprint,
        "source": str(cfg.dataset.path or f"bundled {cfg.dataset.source}"),
        "profile": json.dumps(data.sizes),
    }


def tags(cfg: DictConfig, data: RunData, sweep: str | None) -> dict[str, Any]:
    """The MLflow tags of a run, by which a sweep's runs are grouped and compared."""
    return {
        "sweep": sweep or "",
        "key": run_key(cfg),
        "adapter": cfg.adapter.name,
        **method_of(cfg).tags(cfg.adapter),
        "backbone": cfg.backbone.family if cfg.backbone.name == "embedded" else cfg.backbone.name,
        "dataset": cfg.dataset.name,
        "rank": cfg.rank,
        "alpha": cfg.alpha,
        "seed": cfg.seed,
        "data_fingerprint": data.fingerprint,
        **({} if cfg.adapter.start_from is None else {"start_from": described(cfg)}),
        **{f"{name}_items": size for name, size in data.sizes.items()},
    }
