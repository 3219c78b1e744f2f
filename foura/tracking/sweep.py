"""A sweep's parent run, made once before any of its jobs start."""

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from foura.config import outputs_dir


class ParentRun(Callback):
    """Hydra callback: creates the store and the parent run in the launching process.

    Several processes opening a fresh SQLite store at once race for its schema, so nobody may do it but the launcher.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            from foura.tracking.store import parent_run

            parent_run(outputs_dir(config), Path(config.hydra.sweep.dir).name)
