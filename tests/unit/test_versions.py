"""The versions that are tested: the oldest that pyproject.toml allows are those of constraints-oldest.txt."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOUND = re.compile(r"^([\w-]+)(?:\[\w+\])?(>=|==)([\d.]+)")


def test_the_oldest_constraints_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    bounds = {match[1]: match[3] for match in map(BOUND.match, wanted) if match and match[2] == ">="}
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert len(bounds) >= 20
    missing = {name: version for name, version in bounds.items() if not same(pinned.get(name, "0"), version)}
    assert missing == {}


def same(pinned: str, bound: str) -> bool:
    """True if the pinned version is the bound, with zeros where the bound ends."""
    first, second = pinned.split("."), bound.split(".")
    return first[: len(second)] == second and set(first[len(second) :]) <= {"0"}
