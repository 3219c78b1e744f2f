"""Rules for the tests themselves: none depends on the speed of the machine, and none on another test."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
MODULES = sorted(TESTS.rglob("test_*.py"))
CLOCKS = {"monotonic", "perf_counter", "process_time", "time", "time_ns", "monotonic_ns", "perf_counter_ns"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_clock_is_read(path) -> None:
    """A test that measures time fails on a busy machine: `make bench` measures, `tests.helpers.waiting` waits."""
    names = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("time", "timeit")
    }
    assert not names & CLOCKS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_imports_another(path) -> None:
    """Code that several tests need is in tests/helpers."""
    imports = re.findall(r"^\s*(?:from|import) (tests[.\w]*)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    own = ".".join(path.relative_to(TESTS.parent).with_suffix("").parts)
    assert [name for name in imports if ".test_" in name and name != own] == []
