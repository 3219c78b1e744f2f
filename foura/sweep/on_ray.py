"""Starts Ray for a sweep (hydra/launcher=ray) before Hydra's launcher does, which uses a Ray that is there already.

Ray's processes listen on every interface of the machine, also with another `_node_ip_address`, and whoever reaches one of
them can run code. A Ray that is started here asks for a token, which it and its workers have in their environment.
"""

import os
import secrets
from typing import Any

from omegaconf import DictConfig, OmegaConf

STORE = 75 * 2**20  # bytes of Ray's object store, which holds the configs of runs: the least that Ray takes


def start_ray(init: DictConfig) -> None:
    """Start Ray on this machine, or join the one at `address`.

    By default the working directory is the first place from which Ray's workers import, so that a file there called numpy.py
    would be executed. They do not get it, unless the user gives a runtime_env, which has a rule of its own for that.

    Args:
        init: arguments of ray.init (hydra.launcher.ray.init).
    """
    settings: Any = OmegaConf.to_container(init, resolve=True)
    if not settings.get("address"):
        settings.setdefault("object_store_memory", STORE)
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray
    from ray.job_config import JobConfig

    if "runtime_env" not in settings:
        settings["job_config"] = JobConfig(_client_job=True)  # as of Ray's remote clients, whose directory is elsewhere
    ray.init(**settings)
