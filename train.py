"""One run, or with -m a sweep: `python train.py adapter=foura rank=64`. The keys are in conf/ (`--cfg job`)."""

import os
import sys
import traceback
from pathlib import Path

from foura.errors import (
    Busy,
    Interrupted,
    UserError,
    exit_without_lab,
    first_line,
    print_traceback,
    traceback_of,
    without_shared_memory,
)
from foura.escape import names_credential

try:
    from foura.children import again, leave_working_directory, protect_children, require_working_directory

    leave_working_directory()  # before anything is imported that could lie there under the same name
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from foura.atomic import write_text
    from foura.config import register
    from foura.mistakes import explain
    from foura.run.start import execute
    from foura.sweep import sweeper
    from foura.threads import spin_briefly
except ModuleNotFoundError as error:
    exit_without_lab(error)

RERUN = "--experimental-rerun"  # of Hydra's: it reads a pickle

spin_briefly()
protect_children()
register()
sweeper.register()


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
        write_text(folder / "error.txt", traceback_of(error))
        said = f"{type(error).__name__}: {first_line(error)} (traceback: {folder / 'error.txt'})"
        print(f"error: {folder.name}: {said}", flush=True)
    return True


if __name__ == "__main__":
    sys.excepthook = print_traceback
    if any(names_credential(argument) for argument in sys.argv[1:]):
        sys.exit(
            "error: the command has a password or a token in it, which other users of this machine can read, and which the "
            "run's folder would keep. Set it in the environment, such as MLFLOW_TRACKING_URI or HF_TOKEN."
        )
    if any(len(word) > len("--e") and RERUN.startswith(word.partition("=")[0]) for word in sys.argv[1:]):
        sys.exit(f"error: {RERUN} executes what is in the file that it names; give the overrides of the run instead.")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing, and `explain` says it
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        require_working_directory()
        if type(error).__name__ == "TerminatedWorkerError":  # joblib's: one worker was killed and took the pool with it
            print("a worker of the sweep was killed, as when memory runs out; the sweep continues", flush=True)
            again()
        if any(frame.f_code is execute.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise  # a bug, and not a mistake in the command line
        sys.exit(f"error: {UserError(without_shared_memory(error) or explain(error))}")
