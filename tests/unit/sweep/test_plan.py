"""The states of a sweep's runs, from their folders alone."""

from filelock import FileLock

from foura.sweep.plan import run_status, states, sweep_status
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
    assert dict(sweep_status(tmp_path))["alive"]["state"] == "interrupted"
