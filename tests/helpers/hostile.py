"""Bad input by generation: the number of examples, and what must hold for each of them."""

import faulthandler
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foura.errors import UserError
from tests.helpers.survives import record

FAST = 25  # examples in `make test`, at most; `make test-all` takes the profile "all"
SECONDS = 120  # against hanging: what a single example may take on the busiest machine
BYTES = st.binary(max_size=200)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([10**20, -1, 0, 10**9, 1e308, "", "a" * 300, "../../etc/passwd", "/etc/passwd", "\x00", "\ud800"]),
    st.text(max_size=20),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


class Hangs(BaseException):
    """Not an Exception, so that nothing under test takes it for one of its own."""


@contextmanager
def in_time(seconds: int = SECONDS) -> Iterator[None]:
    """Fail if the block takes longer; if it cannot even be interrupted, end the process with its stack printed."""

    fired: list[bool] = []

    def late(*_: Any) -> None:
        fired.append(True)
        raise Hangs(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)  # pytest's own has no descriptor
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if fired:  # also where a library's own clean-up put another error in its place
            raise Hangs(f"still at it after {seconds} s")


def is_a_sentence(said: str) -> None:
    assert said.strip() and "\n" not in said and "Traceback" not in said and len(said) < 2000, said


def refused(call: Callable[[], Any]) -> bool:
    """True if the call ends in a user's error, which must be one sentence; any other exception fails the test."""
    with in_time():
        try:
            call()
        except UserError as error:
            is_a_sentence(str(error))
            return True
    return False


def thorough() -> bool:
    """The tests run with `--hypothesis-profile=all`, as in `make test-all`."""
    return settings.get_current_profile_name() == "all"


def few(values: Sequence[Any], count: int = 2) -> Sequence[Any]:
    """The first `count` of the values, all of them in a thorough run."""
    return values if thorough() else values[:count]


def try_all(strategy: st.SearchStrategy[Any], check: Callable[[Any], Any], examples: int) -> None:
    """`check` on so many examples, the same ones every time; on a twentieth, and at most `FAST`, in a fast run."""
    examples = examples if thorough() else min(FAST, -(-examples // 20))

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def run(value: Any) -> None:
        check(value)

    run()
    if not thorough():
        return
    name, _, parameter = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].removesuffix(" (call)").partition("[")
    subject = parameter.removesuffix("]")
    what = name.removeprefix("test_").replace("_", " ") + (f" ({subject})" if subject else "")
    record("bad input", what, f"{examples:,} inputs by generation")


class Payload:
    """Unpickled, it leaves a file: code was run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def payload(mark: Path, protocol: int = 2) -> bytes:
    """A pickle that touches the file `mark` when it is loaded; `mark` must not exist."""
    assert not mark.exists()
    found = pickle.dumps(Payload(mark), protocol)
    pickle.loads(found)
    assert mark.exists()  # it works
    mark.unlink()
    return found


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """A file with bytes changed, cut out or put in, or cut short."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        # the first bytes are where formats keep their structure
        where = draw(st.integers(0, min(len(data), 200))) if draw(st.booleans()) else draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if kind == "change":
            new = draw(st.binary(min_size=1, max_size=8))
            data[where : where + len(new)] = new
        elif kind == "cut":
            del data[where : where + draw(st.integers(1, 50))]
        elif kind == "insert":
            data[where:where] = draw(BYTES)
        else:
            del data[where:]
    return bytes(data)


@st.composite
def mutated(draw: Any, record: dict[str, Any], further: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object that is nearly right: fields of it changed, left out or added (`further`: likely values by name)."""
    record, names = dict(record), [*record, *(further or {})]
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names) if draw(st.integers(0, 5)) else st.text(max_size=10))
        if draw(st.integers(0, 4)) == 0:
            record.pop(name, None)
        else:
            record[name] = draw(st.sampled_from((further or {})[name]) if name in (further or {}) else VALUES)
    return record
