"""The journal of a run: everything arrives in order, whatever the store and the process do."""

import json
from types import SimpleNamespace

import pytest

from foura.tracking import journal
from foura.tracking.journal import FILE, Outbox


class Store:
    """Takes items, or raises while `down`."""

    def __init__(self) -> None:
        self.items: list[dict] = []
        self.calls: list[int] = []  # items of each
        self.down = False

    def __call__(self, run_id: str | None, items: list[dict]) -> str:
        if self.down:
            raise ConnectionError("the store is down\nwith a traceback")
        self.items += items
        self.calls.append(len(items))
        return run_id or "r1"


@pytest.fixture
def store(monkeypatch) -> Store:
    monkeypatch.setattr(journal, "RETRY", 0.0)
    monkeypatch.setattr(journal, "SHARE", 1e9)
    return Store()


CREATE = {"name": "lora r4", "params": {"rank": "4"}, "tags": {"uid": "u", "key": "k"}, "sweep": None, "time": 1}
ITEMS = [{"create": CREATE}, {"metrics": {"a": 1.0}, "step": 0, "time": 2}, {"end": "finished"}]


def test_what_a_store_refuses_arrives_later_and_in_order(store, tmp_path) -> None:
    outbox = Outbox(store, tmp_path)
    store.down = True
    for item in ITEMS[:2]:
        outbox.send(item)
    assert not outbox.deliver() and outbox.error == "the store is down" and outbox.run_id is None
    store.down = False
    outbox.send(ITEMS[2])
    assert store.items == ITEMS and outbox.run_id == "r1" and outbox.error == ""


def test_metrics_that_wait_are_delivered_in_one_call(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(journal, "AT_ONCE", 3)
    outbox = Outbox(store, tmp_path)
    metrics = [{"metrics": {"a": float(step)}, "step": step} for step in range(5)]
    store.down = True
    for item in ({"create": {}}, *metrics, {"end": "finished"}):
        outbox.send(item)
    store.down = False
    assert outbox.deliver()
    assert store.calls == [1, 3, 2, 1] and store.items == outbox.items and outbox.delivered == 7


def test_a_slow_store_takes_a_small_share_of_the_time(store, tmp_path, monkeypatch) -> None:
    """A call takes 2 s, and may take a twentieth of the time: 40 s pass until the next. The end of a run waits for nothing."""
    now = [100.0]

    def slow(run_id: str | None, items: list[dict]) -> str:
        now[0] += 2.0
        return store(run_id, items)

    monkeypatch.setattr(journal, "SHARE", 0.05)
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    outbox = Outbox(slow, tmp_path)
    delivered = []
    for seconds, item in ((0, ITEMS[0]), (20, ITEMS[1]), (19, ITEMS[1]), (2, ITEMS[1]), (1, ITEMS[1])):
        now[0] += seconds
        outbox.send(item)
        delivered.append(outbox.delivered)
    assert delivered == [1, 1, 1, 4, 4] and store.calls == [1, 3]
    outbox.send(ITEMS[2])  # no metrics: at once
    assert outbox.delivered == 6 == len(outbox.items)


def test_another_process_delivers_what_is_left(store, tmp_path) -> None:
    first = Outbox(store, tmp_path)
    first.send(ITEMS[0])
    store.down = True
    first.send(ITEMS[1])
    store.down = False
    second = Outbox(store, tmp_path)
    assert second.run_id == "r1" and second.delivered == 1
    assert second.deliver() and store.items == ITEMS[:2]
    second.again()
    assert Outbox(store, tmp_path).delivered == 0 and Outbox(store, tmp_path).run_id is None


def test_a_line_that_was_cut_short_is_left_out(store, tmp_path) -> None:
    outbox = Outbox(store, tmp_path)
    outbox.send(ITEMS[0])
    with open(tmp_path / FILE, "a") as file:
        file.write('{"metrics": {"a": 1')
    again = Outbox(store, tmp_path)
    again.send(ITEMS[2])
    assert Outbox(store, tmp_path).items == [ITEMS[0], ITEMS[2]]


def test_a_journal_is_untrusted(store, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    lines: list = [ITEMS[0], {"artifact": "../secret", "under": None}, {"artifact": str(tmp_path / "secret")}]
    lines += [{"artifact": "link", "under": None}, {"artifact": "adapter", "under": None}, {"nothing": 1}, [1], 3]
    lines += [{"delivered": "x"}, {"delivered": 10**9}]
    (folder / FILE).write_text("\n".join(map(json.dumps, lines)) + "\n" + "[" * 100_000 + "\n")
    outbox = Outbox(store, folder)
    assert outbox.items == [ITEMS[0], {"artifact": "adapter", "under": None}]
    assert outbox.delivered == 2
