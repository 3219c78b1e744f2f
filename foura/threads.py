"""OpenMP's threads should spin only briefly while they wait: on a busy machine spinning makes torch several times slower.

Light on purpose: OpenMP reads its variables once, when torch is loaded, so they are set before. Chosen by the table of
experiments/benchmarks/openmp.py.
"""

import os

POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of these set: the user has chosen
SPINS = "1000"  # GNU's OpenMP spins 300,000 times by default; not spinning at all doubled a quiet machine's small steps


def spin_briefly() -> None:
    """Let waiting OpenMP threads sleep soon, in this process and its children, unless the environment says otherwise.

    Takes effect only before torch is imported.
    """
    if not any(name in os.environ for name in POLICIES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
