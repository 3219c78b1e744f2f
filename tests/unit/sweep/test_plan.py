"""The states of a sweep's runs, from their folders alone."""

from filelock import FileLock

from foura.sweep.listing import runs_in
from foura.sweep.plan import run_status, states, varied_keys
from foura.tracking.status import write_json


def test_a_run_is_running_only_while_a_process_holds_it(tmp_path) -> None:
    for name in ("alive", "killed"):
        write_json(tmp_path / name / "status.json", {"state": "running", "key": "k"})
    write_json(tmp_path / "done" / "status.json", {"state": "finished", "key": "k"})
    write_json(tmp_path / "odd" / "status.json", {"key": "k"})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "status.json").write_text("{")
    (tmp_path / "new").mkdir()
    folders = sorted(path for path in tmp_path.iterdir())
    with FileLock(tmp_path / "alive" / ".lock"):
        found = {folder.name: run_status(folder)["state"] for folder in folders}
        assert found == {
            "alive": "running",
            "damaged": "unreadable",
            "done": "finished",
            "killed": "interrupted",
            "new": "waiting",
            "odd": "unreadable",
        }
        assert states(folders) == {
            "running": 1,
            "unreadable": 2,
            "finished": 1,
            "interrupted": 1,
            "waiting": 1,
        }
    assert {run.name: run.state for run in runs_in(tmp_path)}["alive"] == "interrupted"


def test_the_keys_that_vary_in_a_sweep() -> None:
    jobs = [["adapter=lora", "+adapter.lr=1e-3", "rank=4"], ["adapter=lora", "+adapter.lr=3e-3", "rank=4"]]
    assert varied_keys(jobs) == ["adapter.lr"]
    assert varied_keys(jobs[:1]) == []
