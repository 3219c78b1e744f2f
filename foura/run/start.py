"""Starts one run: locks its folder, checks its config, and executes it unless its result is there already.

Light on purpose: torch and Lightning are imported once the config is known to be sound and the run to be needed.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from foura import distributed
from foura.atomic import write_text
from foura.config import check, check_used, outputs_dir, run_key
from foura.errors import UserError, cannot_write, first_line, out_of_memory, panicked, reason, without_shared_memory
from foura.run import resume, worker
from foura.run.processes import process_count
from foura.run.signals import handle_sigterm
from foura.tracking.parts import agree_to_links
from foura.tracking.status import RunStatus


def execute(cfg: DictConfig, folder: Path, sweep: str | None, again: bool) -> bool:
    """Execute one run; false if its result was there already.

    Args:
        folder: the run's own folder. sweep: the sweep that the run belongs to.
        again: true executes it in any case.

    Raises:
        UserError: anything that a user can change: the config, the data, too little memory, a disk that cannot be written to.
    """
    handle_sigterm()
    try:
        distributed.init_process_group()
        if distributed.is_main():
            return _main_process(cfg, folder, sweep, again)
        if distributed.broadcast():
            with worker.scratch_run() as (scratch, status):
                worker.load_run()(cfg, scratch, status, sweep)
        return True
    except BaseException as error:
        if not isinstance(error, Exception) and not panicked(error):
            raise
        said = _sentence(error, folder)
        if said is None:
            raise
        raise UserError(said) from error


def _main_process(cfg: DictConfig, folder: Path, sweep: str | None, again: bool) -> bool:
    """Lock the folder and execute the run, unless its result is there; tell the other processes whether they are needed."""
    needed = False
    try:
        with RunStatus(folder) as status:
            check(cfg)
            agree_to_links(outputs_dir(cfg))
            check_used(cfg)
            processes, key = process_count(cfg), run_key(cfg)
            if not resume.needed(status, key, again):
                return False
            resume.clear(status, key, force=cfg.force)
            status.write("running", key=key, run_id=status.previous.get("run_id"))
            write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            if processes > 1 and not distributed.started():
                worker.launch(folder, status, processes, sweep)
                return True
            needed = distributed.broadcast(True)
            if sweep is None:
                print(f"{cfg.adapter.name} r{cfg.rank} seed {cfg.seed}: loading …", flush=True)
            worker.load_run()(cfg, folder, status, sweep)
            return True
    finally:
        if not needed and distributed.started():
            distributed.broadcast(False)


def _sentence(error: BaseException, folder: Path) -> str | None:
    """The sentence for an error of memory or disk; None for one that has its sentence already, and for a bug."""
    cause = error.__cause__ or error  # loading a model turns any failure into "could not be loaded"
    if panicked(error):
        return (
            f"a file of the model, such as its tokenizer.json, is damaged ({first_line(error)[:200]}); fetch it again."
        )
    full = without_shared_memory(error)
    if full is not None and not isinstance(error, UserError):
        return full
    if out_of_memory(cause):
        return (
            f"out of memory ({reason(cause)[:200]}). Lower dataset.batch_size or dataset.eval_batch_size, or set "
            "backbone.gradient_checkpointing=true; trainer=fsdp spreads a model."
        )
    if isinstance(error, UserError) or not cannot_write(error):
        return None
    return (
        f"cannot write to {folder} ({first_line(error)[:200]}). Make room, or choose another place with outputs=…; the same "
        "command then resumes from the last checkpoint."
    )
