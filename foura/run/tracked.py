"""The run in the tracking store: started or resumed, and closed with the state in which the run ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from foura import distributed
from foura.config import outputs_dir, run_key, scientific
from foura.methods import method_of
from foura.methods.state import adapter_parameters
from foura.run import resume
from foura.tracking.status import RunStatus, state_of
from foura.tracking.tracked_run import TrackedRun, Untracked, start_run


@contextmanager
def tracked_run(
    cfg: DictConfig, status: RunStatus, data: Any, model: nn.Module, title: str, sweep: str | None, console: Console
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
            told = scientific(cfg), tags(cfg, data, sweep)
            tracked = start_run(
                tracked.outputs, tracked.folder, title, *told, sweep, replaces=status.previous.get("run_id")
            )
    resumed = distributed.broadcast(resumed)
    status.write("running", run_id=tracked.run_id)
    if resumed:
        console.print(f"{title}: resumes after {resume.place(checkpoint)} (force=true starts anew)")
    try:
        yield tracked, checkpoint, resumed
    except BaseException as error:
        tracked.close(state_of(error))
        raise
    if not tracked.close("finished"):
        console.print(f"tracking is behind ({tracked.error}): `foura sync` delivers what {status.path.parent} keeps")
    status.fields["run_id"] = tracked.run_id


def tags(cfg: DictConfig, data: Any, sweep: str | None) -> dict[str, Any]:
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
        **{f"{name}_items": size for name, size in data.sizes.items()},
    }
