"""OpenMP's threads must not spin while they wait: on a busy machine that makes torch many times slower.

Light on purpose: OpenMP reads its variables once, when torch is loaded, so they are set before. Measured in
experiments/benchmarks/openmp.py.
"""

import os

POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of these set: the user has chosen


def wait_without_spinning() -> None:
    """Make waiting OpenMP threads sleep, in this process and its children, unless the environment says otherwise.

    Takes effect only before torch is imported.
    """
    if not any(name in os.environ for name in POLICIES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
