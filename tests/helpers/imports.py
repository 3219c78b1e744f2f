"""The imports of a command: without heavy ones it answers at once, however slow the machine is."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

REPORT = "import time:"
HEAVY = frozenset(
    (
        "torch",
        "torchvision",
        "torchmetrics",
        "pytorch_lightning",
        "lightning_fabric",
        "peft",
        "transformers",
        "diffusers",
    )
) | frozenset(("timm", "datasets", "mlflow", "sqlalchemy", "numpy", "scipy", "pandas", "sklearn", "matplotlib", "PIL"))


def imports_of(
    command: Sequence[str], env: Mapping[str, str], cwd: Path
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run `python COMMAND`.

    Returns:
        how it ended, its standard error as without the report on imports; and the packages that it imported.
    """
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, env=env, cwd=cwd, check=False
    )
    lines = ended.stderr.splitlines()
    ended.stderr = "\n".join(line for line in lines if not line.startswith(REPORT))
    names = (line.rpartition("|")[2].strip() for line in lines if line.startswith(REPORT))
    return ended, {name.partition(".")[0] for name in names}
