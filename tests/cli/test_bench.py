"""`make bench` goes from start to end; what it measures is in experiments/benchmarks."""

import csv
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("only", "against"), [("framework", "bare loop"), ("layers", "lora"), ("models", "lora")])
def test_a_quick_look_measures_something(only, against, root, run_env, tmp_path) -> None:
    bench = [sys.executable, str(root / "experiments" / "benchmarks" / "bench.py")]
    command = [*bench, "--quick", "--only", only, "--out", str(tmp_path)]
    ended = subprocess.run(command, env=run_env, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    with open(tmp_path / f"{only}.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    times = [row for row in rows if row["measure"] != "saved"]  # a frozen layer saves nothing for the backward pass
    assert times and all(float(row["median"]) > 0 and float(row["ratio"]) > 0 for row in times)
    assert {float(row["ratio"]) for row in rows if row["method"] == against} == {1.0}
