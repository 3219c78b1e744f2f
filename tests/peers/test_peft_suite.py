"""PEFT's own test-suite, from the source distribution of the installed version, run on FouRA (minutes)."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import peft
import pytest

SUITES = ("test_custom_models.py", "test_config.py", "test_decoder_models.py", "test_stablediffusion.py")
AT_LEAST = 8700  # of 8,791 with peft 0.21.2: a suite that collects little proves little


@pytest.fixture(scope="module")
def peft_tests(tmp_path_factory) -> Path:
    """A folder with PEFT's tests and the tiny models that they ask the hub for."""
    folder = tmp_path_factory.mktemp("peft")
    source = os.environ.get("FOURA_PEFT_SOURCE")
    if source is None:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        answer = subprocess.run(
            [*download, "--no-binary", "peft", "--dest", str(folder), f"peft=={peft.__version__}"],
            capture_output=True,
            text=True,
            check=False,
        )
        archives = list(folder.glob("*.tar.gz"))
        if not archives:
            pytest.fail(
                f"the source distribution of peft {peft.__version__} could not be downloaded; unpack it somewhere and set "
                f"FOURA_PEFT_SOURCE to that folder. {answer.stderr[-500:]}"
            )
        with tarfile.open(archives[0]) as archive:
            archive.extractall(folder, filter="data")
        source = str(folder / f"peft-{peft.__version__}")
    work = folder / "work"
    shutil.copytree(Path(source) / "tests", work / "tests")
    (work / "tests" / "__init__.py").touch()
    (work / "pytest.ini").write_text("[pytest]\n")
    models = Path(__file__).with_name("tiny_models.py")
    subprocess.run([sys.executable, "-W", "ignore", str(models), str(work)], check=True, capture_output=True)
    return work


@pytest.mark.slow
def test_pefts_own_tests_pass_on_foura(peft_tests, capsys) -> None:
    counts = peft_tests / "counts.json"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),  # the plugin alone: PEFT's tests are a package `tests` too
        "FOURA_PEERS_COUNTS": str(counts),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    suites = [f"tests/{suite}" for suite in SUITES]
    options = ["-p", "lora_to_foura", "-p", "no:cacheprovider", "-q", "--tb=short", "-W", "ignore", "-n", "2"]
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *suites],
        cwd=peft_tests,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert counts.exists(), answer.stdout[-3000:] + answer.stderr[-2000:]
    files = json.loads(counts.read_text())
    with capsys.disabled():
        print(f"\npeft {peft.__version__}: {files}")
    total = {outcome: sum(file.get(outcome, 0) for file in files.values()) for outcome in ("passed", "failed", "error")}
    assert total["failed"] == total["error"] == 0, answer.stdout[-6000:]
    assert set(files) == set(SUITES) and total["passed"] >= AT_LEAST
