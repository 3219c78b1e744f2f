"""One run, or with -m a sweep: `python train.py adapter=foura rank=64`. The keys are in conf/ (`--cfg job`)."""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foura.config import check, explain, register, run_key
from foura.errors import UserError
from foura.tracking.status import RunStatus

register()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is installed, and it speaks


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with RunStatus(folder) as status:
            check(cfg)
            status.write("running", key=run_key(cfg))
            OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
            from foura.run import run  # torch and Lightning only once the config is known to be sound

            run(cfg, folder, status)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # Hydra goes on with the other jobs and says at the end which one it was
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing, and we say it in a sentence
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")
    except UserError as error:
        sys.exit(f"error: {error}")
