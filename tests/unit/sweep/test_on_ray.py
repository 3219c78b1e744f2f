"""Starting Ray for a sweep: what it is given. (tests/cli/test_ray.py runs one.)"""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
from omegaconf import OmegaConf

from foura.sweep.on_ray import STORE, start_ray


@pytest.fixture
def started(monkeypatch) -> list[dict]:
    """The arguments of every ray.init, of a Ray that is not there."""
    calls: list[dict] = []
    ray, config = ModuleType("ray"), ModuleType("ray.job_config")
    ray.init = lambda **settings: calls.append(settings)
    config.JobConfig = SimpleNamespace
    for name, module in (("ray", ray), ("ray.job_config", config)):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that it is as it was after the test
        monkeypatch.delenv(name)
    return calls


def test_a_ray_of_this_machine_asks_for_a_token_and_imports_nothing_from_here(started) -> None:
    start_ray(OmegaConf.create({"address": None, "num_cpus": 2}))
    (settings,) = started
    assert settings.pop("job_config")._client_job is True
    assert settings == {"address": None, "num_cpus": 2, "object_store_memory": STORE}
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    token = os.environ["RAY_AUTH_TOKEN"]
    start_ray(OmegaConf.create({"address": None}))
    assert os.environ["RAY_AUTH_TOKEN"] == token


def test_what_the_user_says_of_ray_holds(started, monkeypatch) -> None:
    start_ray(OmegaConf.create({"address": "auto", "runtime_env": {"working_dir": "."}}))
    assert started == [{"address": "auto", "runtime_env": {"working_dir": "."}}]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    start_ray(OmegaConf.create({"num_cpus": 1}))
    assert "RAY_AUTH_TOKEN" not in os.environ
