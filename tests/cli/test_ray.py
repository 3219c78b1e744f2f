"""A sweep on Ray, whose launcher wants older packages than the rest: installed over this environment, in a folder apart."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator

import pytest

from tests.helpers.runs import children, statuses
from tests.helpers.survives import record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python_with_ray(root, tmp_path_factory) -> str:
    """A Python that has foura[ray]: this one, or one that sees its packages and has Ray's beside them."""
    if importlib.util.find_spec("ray") and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"):
        return sys.executable
    folder = tmp_path_factory.mktemp("ray")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith("site-packages")]
    (site / "packages_of_the_tests.pth").write_text("\n".join(seen))
    wanted = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ray"]
    # what is installed already is not solved for again: that Ray's cloudpickle needs this joblib has to be said
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *wanted, "joblib<1.6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"foura[ray] cannot be installed here: {done.stderr.strip()[-300:]}")
    return str(python)


@pytest.fixture
def ray_env(run_env) -> Iterator[dict[str, str]]:
    """The environment of a Ray without telemetry, in a temporary folder with the short path that its sockets need."""
    folder = tempfile.mkdtemp(prefix="ray")
    yield {**run_env, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, "HOME": folder}
    shutil.rmtree(folder, ignore_errors=True)


def test_ray_runs_a_sweep_and_it_ends_in_a_report(python_with_ray, ray_env, root, tmp_path) -> None:
    outputs, work = tmp_path / "outputs", tmp_path / "work"
    work.mkdir()
    for name in ("numpy", "hydra_plugins", "ray", "torch", "cloudpickle", "foura"):  # Ray itself would import from here
        (work / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    launcher = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2")
    quiet = "+hydra.launcher.ray.init.include_dashboard=false"
    grid = ("sweep=s", "adapter=head,lora", "rank=4", "dataset.limit=40", "dataset.epochs=2")
    command = [python_with_ray, str(root / "train.py"), "-m", *launcher, quiet, *grid, f"outputs={outputs}"]
    ended = subprocess.run(command, env=ray_env, cwd=work, capture_output=True, text=True, timeout=300, check=False)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "sweep s: 2 finished" in said and "report: " in said
    assert [status["state"] for status in statuses(outputs, "s").values()] == ["finished"] * 2
    parents, runs = children(outputs, "s")
    assert len(parents) == 1 and len(runs) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parents[0].info.run_id}
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
    record("schedulers", "a sweep on Ray", "2 runs")
