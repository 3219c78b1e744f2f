"""Configs that nobody thought of: whatever is typed is accepted or refused in one sentence, never by a traceback."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foura import config, schema
from foura.errors import UserError
from tests.unit.test_config import composed


def keys(node: type, prefix: str = "") -> list[str]:
    found = []
    for spec in dataclasses.fields(node):
        if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            found += keys(spec.type, f"{prefix}{spec.name}.")
        else:
            found.append(prefix + spec.name)
    return found


KEYS = keys(schema.Config)
GROUPS = ("adapter", "backbone", "dataset", "trainer", "experiment")
VALUES = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["null", "true", "false", "", "''", "[]", "{}", "[1,2]", "{a:1}", "inf", "nan", "-0.0", "1e999", "???"]
    ),
    st.sampled_from(
        ["../..", "/", "~", "$(reboot)", "${oc.env:HOME}", "${rank}", "${nothing.there}", "a b", "\\", "é\u202e"]
    ),
    st.text(min_size=1, max_size=30),
)
OVERRIDES = st.one_of(
    st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
    st.tuples(st.sampled_from(GROUPS), VALUES).map("=".join),
    st.tuples(st.text(min_size=1, max_size=12), VALUES).map("=".join),
    st.tuples(st.sampled_from(["~", "+", "++"]), st.sampled_from(KEYS), VALUES).map(lambda t: f"{t[0]}{t[1]}={t[2]}"),
    st.text(max_size=20),
)


@given(st.lists(OVERRIDES, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_command_line_is_accepted_or_refused_in_a_sentence(overrides) -> None:
    try:
        cfg = composed(*overrides)
    except Exception as error:  # of Hydra, OmegaConf or their parser: train.py explains all of them
        said = config.explain(error)
    else:
        try:
            config.check(cfg)
            config.run_key(cfg)
            return
        except UserError as error:
            said = str(error)
    assert said.strip() and "\n" not in said, said
    assert "Traceback" not in said and len(said) < 2000


def test_a_reference_to_nothing_is_said_by_check() -> None:
    with pytest.raises(UserError, match=r"nothing\.there"):
        config.check(composed("seed=${nothing.there}"))
