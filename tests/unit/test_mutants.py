"""The list of deliberate faults fits the code: each can be made, in exactly one place, and has tests to catch it."""

import ast

import pytest

from tests.mutants import MUTANTS, ROOT, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_fault_can_be_made(mutant) -> None:
    text = mutated((ROOT / mutant.path).read_text(encoding="utf-8"), mutant)
    ast.parse(text)
    assert mutant.tests and all((ROOT / path).exists() for path in mutant.tests.split())


def test_there_are_many_and_none_twice() -> None:
    assert len({(mutant.path, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS) >= 40
