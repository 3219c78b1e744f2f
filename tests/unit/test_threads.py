"""How OpenMP's threads wait: told before torch is loaded, and only where the user has not chosen."""

import os
import subprocess
import sys

import pytest

from foura.threads import POLICIES, spin_briefly


@pytest.fixture
def nothing_chosen(monkeypatch):
    for name in POLICIES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_waiting_threads_spin_briefly(nothing_chosen) -> None:
    spin_briefly()
    assert {name: os.environ.get(name) for name in POLICIES} == {
        **dict.fromkeys(POLICIES),
        "GOMP_SPINCOUNT": "1000",
    }


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "0")]
)
def test_what_the_user_chose_stays(name, value, nothing_chosen) -> None:
    nothing_chosen.setenv(name, value)
    spin_briefly()
    assert {one: os.environ[one] for one in POLICIES if one in os.environ} == {name: value}


@pytest.mark.skipif(sys.platform != "linux", reason="it is GNU's OpenMP that is asked")
def test_torch_reads_it(run_env) -> None:
    """GNU's OpenMP prints its settings when it is loaded."""
    env = {key: value for key, value in run_env.items() if key not in POLICIES} | {"OMP_DISPLAY_ENV": "VERBOSE"}
    code = "from foura.threads import spin_briefly; spin_briefly(); import torch"
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT = '1000'" in ended.stderr
