"""Nothing listens beyond this machine, nothing shared is open to others, and no Python imports from the working directory."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.network import answers, free_port
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow
LISTENING = "0A"
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
QUICK = ("rank=2", "dataset.limit=40", "dataset.epochs=4", "trainer.accelerator=cpu")
PLANTED = ("mlflow", "peft", "torch", "uvicorn", "joblib", "numpy", "datasets", "omegaconf", "foura", "train")
PLANTED += ("gunicorn.conf", "flask", "alembic", "huey", "conftest", "hydra_plugins")


def family(pid: int) -> Iterator[int]:
    """A process and all that it started, whichever of them live."""
    yield pid
    try:
        children = {
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        }
    except OSError:
        return
    for child in children:
        yield from family(child)


def sockets(pid: int) -> set[str]:
    """Inodes of the sockets of a process."""
    found = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith("socket:"):
                found.add(target.strip("socket:[]"))
    except OSError:
        pass
    return found


def listeners(pid: int) -> set[str]:
    """Addresses (hex, without the port) at which a process or one that it started listens."""
    own = set().union(*map(sockets, family(pid)))
    found = set()
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == LISTENING and cells[9] in own:
                found.add(cells[1].partition(":")[0])
    return found


def ports(pid: int) -> set[int]:
    """Ports at which a process or one that it started listens."""
    own = set().union(*map(sockets, family(pid)))
    lines = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    return {int(cells[1].partition(":")[2], 16) for cells in lines if cells[3] == LISTENING and cells[9] in own}


def open_to_others(pid: int, temporary: Path) -> set[str]:
    """What a process or one that it started has in shared memory, or in its folder for temporary files, for others to read.

    But for the folder of torch.compile, which torch makes when it is imported, and which stays empty here.
    """
    found = {path for path in temporary.iterdir() if not path.name.startswith("torchinductor_") or any(path.iterdir())}
    for one in family(pid):
        try:
            mapped = re.findall(r"(/dev/shm/\S+)$", Path(f"/proc/{one}/maps").read_text(), flags=re.MULTILINE)
        except OSError:
            continue
        found |= set(map(Path, mapped))
    return {path.name for path in found if path.exists() and path.stat().st_mode & 0o077}


# whoever reaches torchrun's store can put a pickle there, which torchrun's agent loads
ATTACK = """
import base64, pickle, sys, time
from datetime import timedelta
from pathlib import Path
from torch.distributed import TCPStore

class Payload:
    def __reduce__(self):
        return Path.touch, (Path(sys.argv[2]),)

store = TCPStore("127.0.0.1", int(sys.argv[1]), None, False, timeout=timedelta(seconds=5))
for _ in range(20):
    for key in store.list_keys():
        if "torch.rendezvous." in key:
            store.set(key.removeprefix("/"), base64.b64encode(pickle.dumps(Payload())).decode())
    time.sleep(0.5)
"""


class Attacker:
    """Tries to get in by every port that a process or one that it started opens."""

    def __init__(self, mark: Path) -> None:
        self.mark, self.tried = mark, dict[int, subprocess.Popen]()

    def __call__(self, pid: int) -> None:
        for port in ports(pid) - self.tried.keys():
            command = [sys.executable, "-c", ATTACK, str(port), str(self.mark)]
            self.tried[port] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        for process in self.tried.values():
            process.kill()
            process.wait()


def lives(pid: int) -> bool:
    """True for a process that is there, and is not one that has ended and waits to be asked about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def planted(tmp_path) -> Path:
    """A working directory with modules that leave a mark when they are executed."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    return folder


def watched(
    command: list[str],
    cwd: Path,
    env: dict[str, str],
    until: Callable[[], bool] | None = None,
    also: Callable[[int], object] = lambda pid: None,
) -> tuple[set[str], str]:
    """(addresses at which the command listened while it ran, what it printed).

    Args:
        until: ends it. also: is called with its process again and again.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, cwd=cwd, env=env, umask=0, **options)
    seen: set[str] = set()

    def ended() -> bool:
        done = process.poll() is not None or (until is not None and until())
        seen.update(listeners(process.pid))  # after the question, which a server answers once it listens
        also(process.pid)
        return done

    try:
        wait_until(ended, "the end of the command", seconds=500, every=0.2)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert until is not None or process.returncode == 0, said
    return seen, said


@pytest.fixture
def plain_env(run_env) -> dict[str, str]:
    """Without PYTHONPATH, or with what shells make of it: an empty entry, which means the working directory."""
    return {**run_env, "PYTHONPATH": ""}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files as /tmp is, with the short name that sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def test_nobody_gets_in_by_a_port_or_reads_what_processes_share(root, planted, plain_env, tmp_path, temporary) -> None:
    command = [sys.executable, str(root / "train.py"), "adapter=foura", *QUICK[:2], "dataset.epochs=12"]
    command += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "dataset.num_workers=1"]
    attacker, shared = Attacker(tmp_path / "unpickled"), set[str]()

    def look(pid: int) -> None:
        attacker(pid)
        shared.update(open_to_others(pid, temporary))

    env = {**plain_env, "TMPDIR": str(temporary)}
    try:
        _, said = watched([*command, f"outputs={tmp_path}/outputs"], planted, env, also=look)
    finally:
        attacker.stop()
    assert attacker.tried and not attacker.mark.exists()
    assert "accuracy of the selected epoch" in said and shared == set()
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []


JOINS = """
from foura import distributed
distributed.init_process_group()
print(distributed.broadcast("met" if distributed.is_main() else None), flush=True)
input()
"""


def test_processes_of_srun_on_one_machine_listen_on_it_alone(plain_env, tmp_path, root) -> None:
    """With the environment that srun gives them."""
    common = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "one"}
    common |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0", "MASTER_PORT": str(free_port())}
    options = {"cwd": tmp_path, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = []
    for rank in ("0", "1"):
        env = {**plain_env, **common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "PYTHONPATH": str(root)}
        processes.append(subprocess.Popen([sys.executable, "-c", JOINS], env=env, **options))
    try:
        assert [process.stdout.readline() for process in processes] == ["met\n", "met\n"]
        assert [listeners(process.pid) <= set(LOOPBACK) for process in processes] == [True, True]
        assert listeners(processes[0].pid)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_processes_of_a_run_listen_on_this_machine_alone(trainer, root, planted, plain_env, tmp_path) -> None:
    command = [
        sys.executable,
        str(root / "train.py"),
        "adapter=foura",
        *QUICK,
        f"trainer={trainer}",
        "trainer.devices=2",
    ]
    seen, said = watched([*command, f"outputs={tmp_path}/outputs"], planted, plain_env)
    assert seen and seen <= set(LOOPBACK), said  # they talk to each other, and to nobody else
    assert not (tmp_path / "executed").exists()


def test_a_sweep_of_joblib_listens_nowhere_else(root, planted, plain_env, tmp_path, temporary) -> None:
    command = [
        sys.executable,
        str(root / "train.py"),
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "sweep=s",
    ]
    command += ["adapter=head,lora", *QUICK, f"outputs={tmp_path}/outputs"]
    env, shared = {**plain_env, "TMPDIR": str(temporary)}, set[str]()
    seen, said = watched(command, planted, env, also=lambda pid: shared.update(open_to_others(pid, temporary)))
    assert seen <= set(LOOPBACK), said
    assert shared == set()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("how", ["no PYTHONPATH", "an empty entry in PYTHONPATH"])
def test_the_ui_listens_on_this_machine_alone(how, root, planted, plain_env, tmp_path, empty_store) -> None:
    shutil.copytree(planted, tmp_path / "outputs")  # of somebody else, and the server runs in it
    for name in (
        "sitecustomize",
        "usercustomize",
    ):  # an empty entry in PYTHONPATH executes them before any code of ours
        shutil.copy(planted / "mlflow.py", tmp_path / "outputs" / f"{name}.py")
    (tmp_path / "outputs" / ".env").write_text(f"PYTHONPATH={tmp_path}/outputs\nPYTHONSTARTUP=mlflow.py\n")
    (tmp_path / "outputs" / "mlflow.db").write_bytes(empty_store.read_bytes())
    # the package itself is found by its folder, as an installed one is
    start = f"import sys; sys.path.insert(0, {str(root)!r}); from foura.cli import main; main()"
    env = plain_env if how == "no PYTHONPATH" else {**plain_env, "PYTHONPATH": f"{os.pathsep}/nowhere"}
    port = free_port()
    command = [sys.executable, "-P", "-c", start, "ui", str(tmp_path / "outputs"), "--port", str(port)]
    seen, said = watched(command, planted, env, until=lambda: answers(f"http://127.0.0.1:{port}/health"))
    assert seen and seen <= set(LOOPBACK), said
    assert not (tmp_path / "executed").exists()


def test_a_worker_ends_with_the_command_that_started_it(root, run_env, tmp_path) -> None:
    """It holds the run's lock: without it, a second process could begin in the same folder."""
    command = [sys.executable, str(root / "train.py"), "adapter=foura", *QUICK[:2], "dataset.epochs=500"]
    command += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", f"outputs={tmp_path}/outputs"]
    process = subprocess.Popen(command, cwd=tmp_path, env=run_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: list((tmp_path / "outputs").glob("runs/*/checkpoint.pt")), "the first checkpoint")
    workers = [pid for pid in family(process.pid) if pid != process.pid]
    assert len(workers) >= 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(lives, workers)), "the end of the workers", seconds=60)
