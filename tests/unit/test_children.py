"""Python processes that are started, and what the commands say on bad days."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foura import cli
from foura.children import command, leave_working_directory, protect_children
from foura.errors import UserError
from foura.files import from_here
from foura.run.start import _sentence

HOME = str(Path(__file__).resolve().parents[2])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", [HOME]),
        (f"{os.pathsep}/a", [HOME, "/a"]),
        (f"/a{os.pathsep}{os.pathsep}/b{os.pathsep}", [HOME, "/a", "/b"]),
        (f"/a{os.pathsep}{HOME}", ["/a", HOME]),
    ],
)
def test_the_path_of_imports_keeps_what_the_user_named_and_no_empty_entry(given, kept, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", given)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    protect_children()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == kept and os.environ["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize("start", [["-m", "planted"], ["-c", "import planted"], command("planted")[1:]])
def test_a_module_in_the_working_directory_is_not_executed(start, tmp_path, monkeypatch) -> None:
    (tmp_path / "planted.py").write_text("print('executed')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    protect_children()
    ended = subprocess.run([sys.executable, *start], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode != 0 and "executed" not in ended.stdout and "No module named" in ended.stderr


@pytest.mark.parametrize("start", [["train.py", "rank=x"], ["-m", "foura", "status"]])
def test_an_empty_entry_of_the_path_of_imports_executes_nothing(start, tmp_path, run_env) -> None:
    """A shell leaves one behind where PYTHONPATH was not set: PYTHONPATH=$PYTHONPATH:/a. It means the working directory."""
    for name in ("hydra", "omegaconf", "yaml", "filelock", "mlflow", "torch", "hydra_plugins"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    told = [f"{HOME}/{start[0]}", *start[1:]] if start[0].endswith(".py") else start
    env = {**run_env, "PYTHONPATH": os.pathsep.join((HOME, ""))}
    ended = subprocess.run([sys.executable, *told], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
    assert "no runs yet" in ended.stdout or "rank: Value 'x'" in ended.stderr, ended.stderr


def test_a_working_directory_that_the_user_named_stays_on_the_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/scripts", str(tmp_path), "/site"])
    for given, kept in (
        (f"{tmp_path}{os.pathsep}/a", True),
        (f"{tmp_path}{os.pathsep}", True),
        (f"/a{os.pathsep}", False),
    ):
        monkeypatch.setenv("PYTHONPATH", given)
        leave_working_directory()
        assert (str(tmp_path) in sys.path) is kept and "/scripts" in sys.path


def test_a_child_imports_this_very_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    protect_children()
    show = "import foura, json, sys; print(json.dumps([foura.__file__, sys.flags.safe_path]))"
    ended = subprocess.run([sys.executable, "-c", show], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == [f"{HOME}/foura/__init__.py", True]


@pytest.mark.parametrize("start", [["train.py"], ["-m", "foura", "status", "x"]])
def test_a_working_directory_that_was_deleted_is_said(start, tmp_path, run_env) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    told = [f"{HOME}/{start[0]}", *start[1:]] if start[0].endswith(".py") else start
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    asked = ["sh", "-c", script, "sh", str(gone), sys.executable, *told]
    ended = subprocess.run(asked, env=run_env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip() == "error: the working directory was deleted; change to one that exists (cd ~)."


def test_a_path_is_shown_whole_where_the_working_directory_is_gone(tmp_path, monkeypatch) -> None:
    """It may be deleted while a run trains, whose results lie somewhere else."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert from_here(tmp_path / "outputs") == "../outputs"
    (tmp_path / "gone").rmdir()
    assert from_here(tmp_path / "outputs") == f"{tmp_path}/outputs"


def test_ctrl_c_in_a_command_is_a_sentence(tmp_path, monkeypatch, capsys) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr("foura.report.page.report", stopped)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("sys.argv", ["foura", "report", "x", "--outputs", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted: stopped by Ctrl-C; the same command starts anew.\n"


def test_a_command_without_memory_ends_in_a_sentence(tmp_path, monkeypatch) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("foura.run.merge.merge_evaluate", too_large)
    monkeypatch.setattr("sys.argv", ["foura", "merge-eval", str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit, match=r"error: out of memory \(MemoryError\)\.") as ended:
        cli.main()
    assert "\n" not in str(ended.value.code)


SHARED = [
    "unable to write to file </torch_12_34>: No space left on device (28)",
    "unable to allocate shared memory(shm) for file </torch_1_2>: Cannot allocate memory (12)",
    "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that workers are out of shared memory.",
    "[Errno 28] No space left on device: '/dev/shm/pym-1'",
]


@pytest.mark.parametrize("said", SHARED)
def test_a_small_shared_memory_is_not_called_a_full_disk(said, tmp_path) -> None:
    found = _sentence(RuntimeError(said), tmp_path)
    assert found is not None and "dataset.num_workers=0" in found and "cannot write" not in found
    wrapped = RuntimeError("Please call `iter(combined_loader)` first.")
    wrapped.__context__ = RuntimeError(said)
    assert _sentence(wrapped, tmp_path) == found
    panic = type("PanicException", (BaseException,), {})("no entry found for key")
    assert "a file of the model, such as its tokenizer.json, is damaged (no entry" in str(_sentence(panic, tmp_path))
    sentence = UserError("x")
    assert _sentence(sentence, tmp_path) is None
    assert "cannot write" in str(_sentence(OSError(28, "No space left on device"), tmp_path))


SEMAPHORES = """
from pathlib import Path
from foura.run.start import _sentence
import multiprocessing
held = []
try:
    held += [multiprocessing.Lock() for _ in range(100)]
    print("no error")
except OSError as error:
    print(_sentence(error, Path("/x")))
"""


def test_no_room_for_a_lock_between_processes_is_not_called_a_full_disk(tmp_path, run_env) -> None:
    """For real: a shared memory of one page, which only this process sees."""
    mount = 'mount -t tmpfs -o size=4k,nr_inodes=1000 tmpfs /dev/shm && exec "$@"'
    asked = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", SEMAPHORES]
    try:
        ended = subprocess.run(asked, env=run_env, cwd=tmp_path, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip(f"no mount of its own here: {ended.stderr}")
    assert ended.stdout.startswith("the shared memory of this machine or container is full"), ended
    assert "No space left on device" in ended.stdout
