"""Versions: the oldest that are tested are those that pyproject.toml allows, and our own stands in one place."""

import re
import tomllib
from pathlib import Path

import foura

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


def test_the_version_stands_in_one_place_and_the_citation_agrees() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["dynamic"] == ["version"] and "version" not in pyproject["project"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "foura.__version__"}
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert cited and cited[1] == foura.__version__
