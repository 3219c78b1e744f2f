"""One run, or with -m a sweep: `python train.py adapter=foura rank=64`. The keys are in conf/ (`--cfg job`)."""

import os
import sys
import traceback
from pathlib import Path

from foura.errors import Busy, Interrupted, UserError, exit_without_lab, first_line

try:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from foura.config import explain, register
    from foura.run.start import execute
    from foura.threads import spin_briefly
except ModuleNotFoundError as error:
    exit_without_lab(error)

spin_briefly()
register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> bool:
    """One job of Hydra's; returns true if the run was executed, which the callback of sweeps asks."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_of_sweep(cfg, folder, Path(HydraConfig.get().sweep.dir).name)
    try:
        return execute(cfg, folder, cfg.sweep, again=True)
    except Interrupted as error:
        print(f"interrupted: {error}", flush=True)
        sys.exit(error.code)
    except UserError as error:
        sys.exit(f"error: {error}")


def run_of_sweep(cfg: DictConfig, folder: Path, sweep: str) -> bool:
    """One run of a sweep: whatever it ends with but a signal, the sweep continues, and its last line counts the errors."""
    try:
        return execute(cfg, folder, sweep, again=cfg.force)
    except Busy as error:
        print(f"left to the other: {error}", flush=True)
        return False
    except Interrupted as error:
        print(f"interrupted: {folder.name}: {error}", flush=True)
        sys.exit(error.code)  # the sweep ends here, and the same command resumes it
    except UserError as error:
        print(f"error: {folder.name}: {error}", flush=True)
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        said = f"{type(error).__name__}: {first_line(error)} (traceback: {folder / 'error.txt'})"
        print(f"error: {folder.name}: {said}", flush=True)
    return True


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing, and `explain` says it
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if type(error).__name__ == "TerminatedWorkerError":  # joblib's: one worker was killed and took the pool with it
            print("a worker of the sweep was killed, as when memory runs out; the sweep continues", flush=True)
            os.execv(sys.executable, [sys.executable, *sys.argv])
        if any(frame.f_code is execute.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise  # a bug, and not a mistake in the command line
        sys.exit(f"error: {explain(error)}")
