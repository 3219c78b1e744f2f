"""Malformed configs: whatever is typed is accepted or refused in one sentence, never by a traceback."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foura import config, mistakes, schema
from foura.errors import UserError
from foura.families import FAMILIES
from tests.helpers.config import CONF, composed
from tests.helpers.hostile import few, try_all
from tests.helpers.survives import record

COMMANDS = 3000  # examples of make test-all


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


def test_any_command_line_is_accepted_or_refused_in_a_sentence() -> None:
    try_all(st.lists(OVERRIDES, min_size=1, max_size=3), accepted_or_refused, COMMANDS)


def accepted_or_refused(overrides: list[str]) -> None:
    try:
        cfg = composed(*overrides)
    except Exception as error:  # of Hydra, OmegaConf or their parser: train.py explains all of them
        said = mistakes.explain(error)
    else:
        try:
            config.check(cfg)
            config.run_key(cfg)
            return
        except UserError as error:
            said = str(error)
    assert said.strip() and "\n" not in said, said
    assert "Traceback" not in said and len(said) < 2000


@pytest.mark.parametrize("key", ["rank", "adapter.lr", "dataset.classes", "margins.acc"])
def test_a_value_that_is_left_to_be_given_is_said_by_check(key) -> None:
    cfg = composed(f"{key}=???")
    with pytest.raises(UserError, match=rf"^{key}=\?\?\? has no value"):
        config.check(cfg)


def test_a_reference_to_nothing_is_said_by_check() -> None:
    with pytest.raises(UserError, match=r"nothing\.there"):
        config.check(composed("seed=${nothing.there}"))


def numbers() -> list[tuple[str, float, bool]]:
    """(key, a bound, whether the bound itself is legal) of every number in the schema."""
    found = []
    for key in KEYS:
        node, *path = schema.Config, *key.split(".")
        for part in path[:-1]:
            node = next(spec.type for spec in dataclasses.fields(node) if spec.name == part)
        limits = next(spec.metadata for spec in dataclasses.fields(node) if spec.name == path[-1])
        bounds = {"at_least": True, "above": False, "below": False}
        found += [
            (key, limits[name], legal) for name, legal in bounds.items() if math.isfinite(limits.get(name, math.inf))
        ]
    return found


def changed(cfg, key: str, value):
    """The config with one value changed, beside what the types of the schema allow."""
    cfg = cfg.copy()
    OmegaConf.update(cfg, key, value)
    return cfg


def is_refused(cfg) -> bool:
    try:
        config.check(cfg)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return True
    return False


def test_every_number_is_legal_up_to_its_bound_and_not_beyond() -> None:
    base = composed()
    assert len(numbers()) > 40
    for key, bound, legal in numbers():
        whole = isinstance(OmegaConf.select(base, key), int) or (legal and bound == int(bound))
        step = 1 if whole else 1e-9
        below = (key, bound) in [(name, limit) for name, limit, _ in numbers() if limit and not legal]
        value = int(bound) if whole else bound
        assert is_refused(changed(base, key, value)) != legal, (key, value)
        assert is_refused(changed(base, key, value + step if below else value - step)), key
    record("bad input", "every number of a config at its bound and beyond", f"{2 * len(numbers())} values")


def test_every_number_refuses_what_is_none() -> None:
    base, wrong = composed(), ("x", "", [1], {"a": 1}, "1.5.2", "1e", math.nan)
    keys_of_numbers = {key for key, *_ in numbers()}
    for key in keys_of_numbers:
        for value in wrong:
            try:
                cfg = changed(base, key, value)
            except OmegaConfBaseException as error:
                said = mistakes.explain(error)
                assert key.split(".")[-1] in said and "\n" not in said, said
            else:
                assert is_refused(cfg), (key, value)
    record(
        "bad input",
        "a value that is not a number, for every number of a config",
        f"{len(keys_of_numbers) * len(wrong)} values",
    )


def test_every_choice_refuses_what_is_none_and_lists_what_is() -> None:
    base = composed()
    for key in KEYS:
        node, *path = schema.Config, *key.split(".")
        for part in path[:-1]:
            node = next(spec.type for spec in dataclasses.fields(node) if spec.name == part)
        listed = next(spec.metadata for spec in dataclasses.fields(node) if spec.name == path[-1]).get(
            "choices", tuple
        )()
        for value in ("evil", "", "../x", "a\nb") if listed else ():
            with pytest.raises(UserError) as refused:
                config.check(changed(base, key, value))
            assert listed[0] in str(refused.value) and "\n" not in str(refused.value)


def test_every_group_goes_with_every_other_or_is_refused() -> None:
    """In a fast run every dataset with every backbone, beside adapters and trainers in turn."""
    conf = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in GROUPS[:-1]}
    conf["dataset"] = [name for name in conf["dataset"] if not name.startswith("for_")]  # the same under another name
    pairs = [("dataset", "backbone"), ("adapter", "backbone"), ("adapter", "trainer"), ("dataset", "trainer")]
    count = 0
    for one, other in few(pairs, 1):
        for number, chosen in enumerate(itertools.product(conf[one], conf[other])):
            groups = {group: choices[number % len(choices)] for group, choices in conf.items()}
            groups |= {one: chosen[0], other: chosen[1]}
            cfg = composed(*(f"{group}={choice}" for group, choice in groups.items()), "dataset.path=x")
            count += 1
            fits = cfg.dataset.source in FAMILIES[cfg.backbone.family].sources
            assert is_refused(cfg) != fits or cfg.dataset.format is not None, groups
    record("bad input", "groups of a config together: those that do not go together are refused", f"{count} configs")
