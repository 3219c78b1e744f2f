"""One run, or with -m a sweep: `python train.py adapter=foura rank=64`. The keys are in conf/ (`--cfg job`)."""

import logging
import os
import sys
import traceback
from pathlib import Path

from foura.errors import Busy, Interrupted, UserError, cannot_write, exit_without_lab, out_of_memory, reason

try:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    from foura import distributed
    from foura.config import check, explain, register, run_key
    from foura.run import resume, worker
    from foura.run.signals import handle_sigterm
    from foura.threads import wait_without_spinning
    from foura.tracking.status import RunStatus
except ModuleNotFoundError as error:
    exit_without_lab(error)

wait_without_spinning()
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> bool:
    """One job of Hydra's; returns true if the run was executed, which the callback of sweeps asks."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        try:
            one(cfg, folder, cfg.sweep, again=True)
        except Interrupted as error:
            print(f"interrupted: {error}", flush=True)
            sys.exit(error.code)
        except UserError as error:
            sys.exit(f"error: {error}")
        return True
    try:
        return one(cfg, folder, Path(HydraConfig.get().sweep.dir).name, again=cfg.force)
    except Busy as error:
        print(f"left to the other: {error}", flush=True)
        return False
    except Interrupted as error:
        print(f"interrupted: {folder.name}: {error}", flush=True)
        sys.exit(error.code)  # the sweep ends here, and the same command resumes it
    except UserError as error:
        print(f"error: {folder.name}: {error}", flush=True)  # the other runs go on; the sweep's last line counts them
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        said = str(error).strip().splitlines() or [""]
        print(
            f"error: {folder.name}: {type(error).__name__}: {said[0]} (traceback: {folder / 'error.txt'})", flush=True
        )
    return True


def one(cfg: DictConfig, folder: Path, sweep: str | None, again: bool) -> bool:
    """Execute one run; false if its result was there already. `again`: execute it whatever there is.

    Raises:
        UserError: also for what stops any run: no memory, no place to write.
    """
    handle_sigterm()
    try:
        distributed.init_process_group()
        if distributed.is_main():
            return _main_process(cfg, folder, sweep, again)
        if distributed.broadcast():
            with worker.scratch_run() as (scratch, status):
                _run(cfg, scratch, status, sweep)
        return True
    except Exception as error:
        cause = error.__cause__ or error  # loading a model turns any failure into "could not be loaded"
        if out_of_memory(cause):
            raise UserError(
                f"out of memory ({reason(cause)[:200]}). Lower dataset.batch_size or "
                "dataset.eval_batch_size, or set backbone.gradient_checkpointing=true; trainer=fsdp spreads a model."
            ) from error
        if isinstance(error, UserError) or not cannot_write(error):
            raise
        last = [line for line in str(error).strip().splitlines() if line] or [type(error).__name__]
        raise UserError(
            f"cannot write to {folder} ({last[0][:200]}). Make room, or choose another place with outputs=…; the same "
            "command then resumes from the last checkpoint."
        ) from error


def _main_process(cfg: DictConfig, folder: Path, sweep: str | None, again: bool) -> bool:
    """Lock the folder and run, unless the result is there; tells the other processes whether they are needed."""
    needed = False
    try:
        with RunStatus(folder) as status:
            check(cfg)
            processes, key = worker.process_count(cfg), run_key(cfg)
            if not resume.needed(status, key, again):
                return False
            resume.clear(status, key, force=cfg.force)
            status.write("running", key=key, run_id=status.previous.get("run_id"))
            OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
            if processes > 1 and not distributed.started():
                worker.launch(folder, status, processes, sweep)
                return True
            needed = distributed.broadcast(True)
            _run(cfg, folder, status, sweep)
            return True
    finally:
        if not needed and distributed.started():
            distributed.broadcast(False)


def _run(cfg: DictConfig, folder: Path, status: RunStatus, sweep: str | None) -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is installed, and it speaks
    from foura.run.run import run  # torch and Lightning only once the config is known to be sound

    run(cfg, folder, status, sweep)


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing, and we say it in a sentence
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if type(error).__name__ == "TerminatedWorkerError":  # joblib's: one worker was killed and took the pool with it
            print("a worker of the sweep was killed, as when memory runs out; the sweep continues", flush=True)
            os.execv(sys.executable, [sys.executable, *sys.argv])
        if any(frame.name == one.__name__ for frame in traceback.extract_tb(error.__traceback__)):
            raise  # not of the command line: a bug
        sys.exit(f"error: {explain(error)}")
