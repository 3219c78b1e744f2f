"""Outputs of other people: journals and status files take nothing from, and write nothing to, any other place."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from foura.cli import main
from foura.errors import UserError
from foura.report.page import report
from foura.sweep.listing import best, drop, overview, runs_in
from foura.sweep.plan import run_status, sweep_folder
from foura.tracking.journal import FILE, Outbox
from foura.tracking.parts import PARTS
from foura.tracking.status import read_json
from foura.tracking.sync import sync
from foura.tracking.tracked_run import start_run
from foura.tracking.typed import STATES
from tests.helpers.hostile import BYTES, VALUES, damaged, in_time, mutated, try_all
from tests.helpers.runs import client
from tests.helpers.sweeps import grid, synthetic

LINES, STATUSES = 600, 600  # examples of make test-all
CREATE = {
    "name": "lora r4 seed 0",
    "params": {"rank": "4"},
    "tags": {"uid": "a1", "key": "b2", "role": "run", "sweep": ""},
    "sweep": None,
    "replaces": None,
    "time": 1,
}


@pytest.fixture
def outputs(tmp_path, empty_store) -> Path:
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_store, tmp_path / "outputs" / "mlflow.db")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("mine")
    return tmp_path / "outputs"


def journal(outputs: Path, name: str, *items: dict, **create: object) -> Path:
    folder = outputs / "runs" / name
    folder.mkdir(parents=True)
    described = {**CREATE, "name": name, "tags": {**CREATE["tags"], "uid": name}, **create}
    lines = [{"create": described}, *items, {"end": "finished"}]
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def uploaded(outputs: Path) -> set[str]:
    return {path.name for path in (outputs / "artifacts").rglob("*") if path.is_file()}


def test_a_journal_takes_nothing_but_files_of_its_run(outputs, tmp_path) -> None:
    secret = tmp_path / "secret" / "key.txt"
    asked = [str(secret), "../../../secret/key.txt", "link", "inner/link", "linked/key.txt", "adapter"]
    run = journal(outputs, "evil", *({"artifact": name, "under": None} for name in asked))
    (run / "link").symlink_to(secret)
    (run / "linked").symlink_to(secret.parent)
    for inner in ("inner", "adapter"):
        (run / inner).mkdir()
        (run / inner / "link").symlink_to(secret)
    good = journal(outputs, "good", {"artifact": "fine.txt", "under": None})
    (good / "fine.txt").write_text("of the run")
    done = dict(sync(outputs))
    assert done["good"] == "delivered" and "is a link" in done["evil"]
    assert uploaded(outputs) == {"fine.txt"}


def test_a_journal_writes_nowhere_else(outputs, tmp_path) -> None:
    names = ("../../../x", "..", "/tmp/x", "a/b", "evil")
    (outputs / "sweeps").mkdir()
    (outputs / "sweeps" / "evil").symlink_to(tmp_path / "secret")
    for number, name in enumerate(names):
        journal(outputs, f"evil{number}", sweep=name)
    journal(outputs, "under", {"artifact": "x.txt", "under": "../../../../secret"})
    (outputs / "runs" / "under" / "x.txt").write_text("x")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, tmp_path / "secret", outputs / "sweeps")}
    sync(outputs)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(tmp_path.rglob("sweep.json"))


def test_a_journal_changes_no_run_but_its_own(outputs) -> None:
    """Its author has seen the ids of other runs: of one that the user shared, or that lie in the same store."""
    mine = start_run(outputs, journal(outputs, "mine"), "mine", {"rank": "4"}, {"key": "k1"}, "s")
    mine.close("finished")
    before = client(outputs).get_run(mine.run_id)
    good = [{"metrics": {"test/acc": 0.5}, "step": 0, "time": 5}]
    journal(outputs, "into", *good, {"delivered": 1, "run_id": mine.run_id})
    journal(outputs, "instead", sweep="other", replaces=mine.run_id)
    journal(outputs, "parent", tags={**CREATE["tags"], "uid": "p1", "role": "sweep", "sweep": "s", "command": "evil"})
    said = dict(sync(outputs))
    assert said["into"] == "made again" and said["instead"] == "delivered"
    after = client(outputs).get_run(mine.run_id)
    assert after.info.lifecycle_stage == "active" and after.info.status == "FINISHED"
    assert after.data.metrics == before.data.metrics == {} and after.data.tags == before.data.tags
    named = {run.info.run_name: run for run in client(outputs).search_runs(["1"])}
    assert named["into"].data.metrics == {"test/acc": 0.5} and "parent" not in named
    assert {run.data.tags["command"] for run in named.values() if run.data.tags["role"] == "sweep"} == {""}


def test_links_in_an_outputs_folder_lead_nothing_out_of_it(outputs, tmp_path) -> None:
    """The folder of artifacts, of a report and of what was dropped."""
    away = tmp_path / "away"
    away.mkdir()
    good = journal(outputs, "good", {"artifact": "x.txt", "under": None})
    (good / "x.txt").write_text("x")
    (good / "status.json").write_text('{"state": "finished"}')
    (outputs / "artifacts").symlink_to(away)
    assert dict(sync(outputs))["good"].startswith("refused: ")
    (outputs / "artifacts").unlink()
    synthetic(outputs, "s", grid(0.0, seeds=range(1)))
    shutil.move(outputs / "sweeps", tmp_path / "sweeps")
    (outputs / "sweeps").symlink_to(tmp_path / "sweeps")
    before = sorted((tmp_path / "sweeps").rglob("*"))
    for command in (lambda: report(outputs, "s"), lambda: sweep_folder(outputs, "s"), lambda: overview(outputs, False)):
        with pytest.raises(UserError, match=rf"is a link to .* If you made it: touch {tmp_path}/sweeps/"):
            command()
    assert dict(sync(outputs))["sweeps"].startswith(f"refused: {outputs}/sweeps is a link")
    assert sorted((tmp_path / "sweeps").rglob("*")) == before
    (outputs / "sweeps").unlink()
    (outputs / "trash").symlink_to(away)
    with pytest.raises(UserError, match="is a link"):
        drop(outputs, "good")
    assert good.is_dir() and list(away.iterdir()) == []


@pytest.mark.slow
def test_parts_on_another_disk_are_used_once_the_user_has_agreed(train, tmp_path, monkeypatch) -> None:
    """Training into them agrees, since it writes there; `touch` does where nothing is trained."""
    for name in PARTS:
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "outputs").mkdir(exist_ok=True)
        (tmp_path / "outputs" / name).symlink_to(tmp_path / "disk" / name)
    ended = train("-m", "sweep=s", "adapter=head", "dataset.limit=40", "dataset.epochs=1")
    assert ended.code == 0 and "report: " in ended.out, ended.out
    (page,) = (tmp_path / "disk").glob("sweeps/s/report/report.html")
    assert len(list((tmp_path / "disk").glob("artifacts/*/artifacts/report/report.html"))) == 1
    assert "sweep s: 1 finished, just now" in overview(ended.outputs, False)
    journal(ended.outputs, "late")
    (run,) = runs_in(sweep_folder(ended.outputs, "s"))
    assert dict(sync(ended.outputs)) == {"late": "delivered"}
    page.unlink()
    assert report(ended.outputs, "s").resolve() == page.resolve() and page.is_file()
    monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    dropped = drop(ended.outputs, "s")
    assert dropped.resolve() == tmp_path / "disk" / "trash" / "sweeps" / "s" and not page.exists()
    assert (dropped / run.name / "status.json").is_file()


def test_looking_at_a_linked_run_makes_no_lock_where_it_leads(outputs, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "status.json").write_text(json.dumps({**STATUS, "state": "running"}))
    (outputs / "runs").mkdir()
    (outputs / "runs" / "linked").symlink_to(tmp_path / "mine")
    assert [run.state for run in runs_in(outputs / "runs")] == ["interrupted"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["status.json"]


def test_a_linked_run_is_not_read_and_one_bad_journal_does_not_end_the_others(outputs, tmp_path) -> None:
    other = journal(tmp_path / "elsewhere", "mine", {"artifact": "fine.txt", "under": None})
    (other / "fine.txt").write_text("mine")
    journal(outputs, "a-good")
    (outputs / "runs" / "linked").symlink_to(other)
    odd = [outputs / "runs" / name for name in ("b-pipe", "c-huge", "d-lock", "e-folder", "f-none")]
    for folder in odd:
        folder.mkdir()
    os.mkfifo(odd[0] / FILE)
    with open(odd[1] / FILE, "wb") as file:
        file.truncate(3 * 2**30)
    (odd[2] / FILE).write_text("\n")
    (odd[2] / ".lock").mkdir()
    (odd[3] / FILE).mkdir()
    (odd[4] / FILE).write_bytes(b"\xff\x00[[[[{}\n" * 100)
    journal(outputs, "z-good")
    with in_time(60):
        done = dict(sync(outputs))
    assert done["a-good"] == done["z-good"] == "delivered"
    assert all(done[name].startswith("refused: ") for name in ("linked", "b-pipe", "c-huge", "d-lock"))
    assert {run.info.run_name for run in client(outputs).search_runs(["1"])} == {"a-good", "z-good"}


def test_the_sync_command_says_what_it_did_not_send(outputs, monkeypatch, capsys) -> None:
    journal(outputs, "good")
    (outputs / "runs" / "bad").mkdir()
    os.mkfifo(outputs / "runs" / "bad" / FILE)
    monkeypatch.setattr("sys.argv", ["foura", "sync", str(outputs)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).startswith("error: 1 of 2 runs could not be sent")
    assert "delivered: good" in capsys.readouterr().out


@pytest.mark.parametrize("command", [(), ("-m", "sweep=s")])
def test_a_part_on_a_disk_that_is_not_mounted(command, train, tmp_path) -> None:
    (tmp_path / "outputs").mkdir()
    for name in ("runs", "sweeps"):
        (tmp_path / "outputs" / name).symlink_to(tmp_path / "nowhere")
    ended = train(*command, "adapter=head")
    assert str(ended.code).startswith("error: ") and "mounted" in ended.code and "Traceback" not in ended.out
    with pytest.raises(UserError, match="where there is no folder: is its disk mounted"):
        overview(tmp_path / "outputs", False)


@pytest.mark.parametrize("lost", ["its store too", "the line alone"])
def test_a_journal_that_does_not_say_what_run_it_is(lost, outputs) -> None:
    run = journal(outputs, "torn", {"metrics": {"test/acc": 0.5}, "step": 0, "time": 5})
    lines = (run / FILE).read_text().splitlines(keepends=True)
    known = "" if lost == "the line alone" else json.dumps({"delivered": 1, "run_id": "a1"}) + "\n"
    (run / FILE).write_text("".join(lines[1:]) + known)
    journal(outputs, "whole")
    done = dict(sync(outputs))
    assert done["whole"] == "delivered"
    said = "tracking.jsonl does not begin with the line that says what run it is; its command with force=true runs it again"
    assert done["torn"] == f"refused: the run was not delivered (its {said}); tracking.jsonl keeps it."


def test_any_journal_is_loaded_and_only_items_of_a_run_are_kept(tmp_path) -> None:
    def deliver(run_id, item):
        raise ConnectionError

    items = st.one_of(
        mutated(CREATE).map(lambda create: {"create": create}),
        mutated({"metrics": {"val/loss": 0.5}, "step": 1, "time": 5}),
        mutated({"artifact": "adapter", "under": None}, {"artifact": ["../x", "/x", "a\0", 3, None]}),
        mutated({"delivered": 1, "run_id": "abc"}, {"delivered": [True, -1, 10**30], "run_id": ["../x", 3]}),
        VALUES,
    )

    def check(content: bytes) -> None:
        (tmp_path / FILE).write_bytes(content)
        with in_time():
            box = Outbox(deliver, tmp_path)
        assert 0 <= box.delivered <= len(box.items) and (box.run_id is None or "/" not in box.run_id)
        for item in box.items:
            if "create" in item:
                assert {"uid", "key"} <= item["create"]["tags"].keys() and isinstance(item["create"]["time"], int)
            if "metrics" in item:
                assert isinstance(item["step"], int) and isinstance(item["time"], int)
            if "artifact" in item:
                assert (tmp_path / item["artifact"]).resolve().is_relative_to(tmp_path.resolve())

    lines = st.lists(items.map(json.dumps), max_size=6).map("\n".join)
    try_all(lines.map(lambda text: text.encode("utf-8", "surrogatepass")) | BYTES, check, LINES)


STATUS = {
    "state": "running",
    "key": "k",
    "run_id": "r",
    "metrics": {"test/acc": 0.5},
    "seconds": 3.5,
    "killed": 0,
    "kept": [1, 2],
    "error": "it failed",
}


def test_any_status_file_leaves_status_and_plan_working(tmp_path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    (good / "status.json").write_text(json.dumps({**STATUS, "state": "finished"}))
    (tmp_path / "bad").mkdir()
    likely = {"state": ["evil", 3, [], None], "seconds": ["x", -1, float("nan"), 1e308], "killed": ["x", -1, True]}
    likely |= {"metrics": [3, {"a": "x"}, {"a": None}, []], "kept": [3, ["x"], [1, 2, 3]], "error": [3, [], "\x1b[2J"]}

    def check(content: bytes) -> None:
        (tmp_path / "bad" / "status.json").write_bytes(content)
        assert {run.name: run.state for run in runs_in(tmp_path)}["good"] == "finished"
        best(runs_in(tmp_path))
        status = run_status(tmp_path / "bad")
        assert status["state"] in (*STATES, "unreadable")
        assert status.get("seconds", 0) >= 0 and isinstance(status.get("error", ""), str)
        assert all(isinstance(value, int | float) for value in status.get("metrics", {}).values())
        assert isinstance(status.get("killed", 0), int) and not isinstance(status.get("killed", 0), bool)

    whole = json.dumps(STATUS).encode()
    some = mutated(STATUS, likely).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    for name, values in likely.items():
        for value in values:
            check(json.dumps({**STATUS, name: value}).encode())
    try_all(some | damaged(whole) | BYTES, check, STATUSES)


@pytest.mark.parametrize("kind", ["pipe", "link", "huge", "folder"])
def test_a_status_file_that_is_none_counts_as_unreadable(kind, tmp_path) -> None:
    path = tmp_path / "status.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "other").write_text(json.dumps(STATUS))
        path.symlink_to(tmp_path / "other")
    elif kind == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(3 * 2**30)
    with in_time(60):
        assert read_json(path) == {} and run_status(tmp_path)["state"] == "unreadable"


def test_looking_at_runs_truncates_nothing_through_a_lock(tmp_path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text(json.dumps(STATUS))
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    assert run_status(tmp_path / "run")["state"] == "interrupted" and (tmp_path / "mine").read_text() == "mine"
