"""The gate's Triton kernels, run on the CPU by Triton's interpreter, are the textbook; what they do not take runs in eager."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict

import pytest
import torch

from foura.adapter import kernels
from foura.adapter.gate_forms import EntropyGate
from tests.helpers.kernels import CASES

pytest.importorskip("triton", reason="Triton is not installed")
LAYERS = [f"{t} {s} {m}" for t in ("dct", "dft") for s in ("token", "sequence") for m in ("eager", "compiled")]


@pytest.fixture(scope="module")
def found(root) -> dict:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.helpers.kernels"],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout[answer.stdout.index('{"gates"') :])


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(str(value) for value in asdict(case).values()))
def test_a_kernel_is_the_textbook_and_repeats_itself_bit_by_bit(case, found) -> None:
    result = found["gates"][str(asdict(case))]
    half = {"float32": 1.0, "float16": 1e2, "bfloat16": 1e3}[case.dtype]  # of rounding z, the weights and the result
    assert result["out"] < 1e-5 * half and result["grad"] < 1e-4 * half
    assert result["same"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_by_kernels_is_the_layer(layer, found) -> None:
    assert found["layers"][layer] < 1e-4


@pytest.mark.parametrize(
    ("z", "rank", "taken"),
    [
        (torch.zeros(2, 3, 4), 4, False),  # not on a GPU
        (torch.zeros(2, 3, 4, device="meta"), 4, False),
    ],
    ids=["cpu", "another device"],
)
def test_tensors_that_no_kernel_takes_run_in_eager(z, rank, taken, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    assert kernels.takes(z, rank) == taken
    assert EntropyGate(rank, "token").kernel_call(z) is None


def test_float64_and_large_ranks_run_in_eager(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    assert kernels.takes(torch.zeros(2, 256), 256)
    assert not kernels.takes(torch.zeros(2, 257), 257)
    assert not kernels.takes(torch.zeros(2, 4, dtype=torch.float64), 4)


class Card(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("triton", "major", "dtype", "said"),
    [
        (True, 9, torch.bfloat16, None),
        (True, 7, torch.float16, None),
        (True, 7, torch.bfloat16, "too old"),
        (True, 6, torch.float32, "too old"),
        (False, 9, torch.float32, "not installed"),
    ],
)
def test_an_old_card_or_no_triton_is_said_once(triton, major, dtype, said, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "HAS_TRITON", triton)
    monkeypatch.setattr(kernels, "_said", set())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"major": major}))
    z = torch.zeros(2, 4, dtype=dtype).as_subclass(Card)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert kernels.takes(z, 4) == kernels.takes(z, 4) == (said is None)
    assert [said in str(warning.message) for warning in caught] == ([] if said is None else [True])
