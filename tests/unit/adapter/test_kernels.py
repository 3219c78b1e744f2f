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
from foura.adapter.gate import GATE_SCOPES
from foura.adapter.gate_forms import GATE_FORMS
from tests.helpers.kernels import CASES, FORMS, check_empty

pytest.importorskip("triton", reason="Triton is not installed")
from foura.adapter.kernels.launcher import Launcher

LAYERS = [
    f"{form} {transform} {scope} {mode}"
    for form in FORMS for transform in ("dct", "dft") for scope in GATE_SCOPES for mode in ("eager", "compiled")
]  # fmt: skip


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


@pytest.mark.parametrize("form", FORMS)
def test_a_gate_launches_a_kernel_each_way_or_two_for_a_gate_of_many_tokens(form, found) -> None:
    launches = {key: {way: len(names) for way, names in ways.items()} for key, ways in found["launches"].items()}
    one, two = {"forward": 1, "backward": 1}, {"forward": 2, "backward": 2}
    assert [launches[f"{form} token {tokens}"] for tokens in (197, 1024)] == [one, one]
    assert [launches[f"{form} sequence {tokens}"] for tokens in (197, 1024)] == [one, two]  # a ViT's tokens, a text's


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scope", GATE_SCOPES)
def test_the_operator_passes_pytorchs_own_tests(form, scope, found) -> None:
    assert set(found["operators"][f"{form} {scope}"].values()) == {"SUCCESS"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transform", ["dct", "dft"])
@pytest.mark.parametrize("scope", GATE_SCOPES)
def test_an_input_without_a_token_has_an_output_and_no_gradient(form, transform, scope, found) -> None:
    assert found["empty"][f"{form} {transform} {scope}"] == []


@pytest.mark.parametrize("form", GATE_FORMS)
@pytest.mark.parametrize("transform", ["dct", "dft"])
@pytest.mark.parametrize("scope", GATE_SCOPES)
def test_an_input_without_a_token_in_eager(form, transform, scope) -> None:
    assert check_empty(form, transform, scope) == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_that_no_kernel_takes_run_in_eager(form, device, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    z = torch.zeros(2, 3, 4, device=device)
    assert not kernels.takes(z, 4)
    assert GATE_FORMS[form](4, "token").kernel_call(z) is None


@pytest.mark.parametrize("form", GATE_FORMS)
@pytest.mark.parametrize("scope", GATE_SCOPES)
def test_a_form_runs_by_its_kernels_unless_its_gates_are_seen_paid_or_exported(form, scope, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    gate, z = GATE_FORMS[form](4, scope), torch.zeros(3, 5, 4)
    gate.padding_mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    call = gate.kernel_call(z)
    assert (call is not None) == (form in FORMS)
    if call is None:
        return
    assert (call.form, call.by_token) == (form, scope == "token")
    assert all(mine is its for mine, its in zip(gate.parameters(), call.weights, strict=True))
    if scope == "token":
        assert call.mask is None
    else:  # a sample of padding alone is left as it is
        assert call.mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    for single in (z[:, :1], z[:, 0]):  # samples of one token
        assert gate.kernel_call(single).by_token and gate.kernel_call(single).mask is None
    handle = gate.register_forward_hook(lambda *_: None)
    assert gate.kernel_call(z) is None
    handle.remove()
    gate.price = 0.5
    assert gate.kernel_call(z) is None
    with torch.no_grad():
        assert gate.kernel_call(z) is not None
    assert gate.eval().kernel_call(z) is not None
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True)
    assert gate.kernel_call(z) is None


@pytest.mark.parametrize("form", FORMS)
def test_a_form_derived_from_one_with_kernels_has_none(form, monkeypatch) -> None:
    """It may compute other gates."""
    monkeypatch.setattr(kernels, "INTERPRETED", True)

    class Mine(GATE_FORMS[form]):
        pass

    assert Mine(4, "token").kernel_call(torch.zeros(3, 5, 4)) is None


def test_float64_and_large_ranks_run_in_eager(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    assert kernels.takes(torch.zeros(2, 256), 256)
    assert not kernels.takes(torch.zeros(2, 257), 257)
    assert not kernels.takes(torch.zeros(2, 4, dtype=torch.float64), 4)


class Card(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda", 0)


KB = 1024


@pytest.mark.parametrize(
    ("triton", "major", "room", "rank", "dtype", "said"),
    [
        (True, 9, 227 * KB, 256, torch.bfloat16, None),
        (True, 8, 163 * KB, 128, torch.bfloat16, None),
        (True, 8, 163 * KB, 129, torch.bfloat16, "ranks above 128"),
        (True, 8, 99 * KB, 128, torch.float32, None),
        (True, 8, 99 * KB, 129, torch.float32, "ranks above 128"),
        (True, 7, 64 * KB, 64, torch.float16, None),
        (True, 7, 64 * KB, 65, torch.float16, "ranks above 64"),
        (True, 9, None, 64, torch.bfloat16, None),  # a build of PyTorch that does not say
        (True, 9, None, 65, torch.bfloat16, "ranks above 64"),
        (True, 7, 64 * KB, 4, torch.bfloat16, "too old"),
        (True, 6, 48 * KB, 4, torch.float32, "too old"),
        (False, 9, 227 * KB, 4, torch.float32, "not installed"),
    ],
)
def test_a_card_that_cannot_or_no_triton_is_said_once(triton, major, room, rank, dtype, said, monkeypatch) -> None:
    card = type("Properties", (), {"major": major, **({} if room is None else {"shared_memory_per_block_optin": room})})
    monkeypatch.setattr(kernels, "HAS_TRITON", triton)
    monkeypatch.setattr(kernels, "_said", set())
    monkeypatch.setattr(kernels, "_cards", {})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    z = torch.zeros(2, rank, dtype=dtype).as_subclass(Card)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert kernels.takes(z, rank) == kernels.takes(z, rank) == (said is None)
    assert [said in str(warning.message) for warning in caught] == ([] if said is None else [True])


class Compiled:
    """What Triton answers a launch with: the kernel for arguments like these."""

    def __init__(self, launches: list) -> None:
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *arguments: self.launches.append((grid, arguments))


class Kernel:
    """A @triton.jit function."""

    def __init__(self) -> None:
        self.looked_up: list = []
        self.launches: list = []

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*arguments, **sizes) -> Compiled:
            self.looked_up.append((grid, arguments, sizes))
            return Compiled(self.launches)

        return launch


def test_a_launcher_asks_triton_once_for_arguments_alike(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel = Kernel()
    launch = Launcher(kernel)
    z, other = (torch.zeros(8, 4).as_subclass(Card) for _ in range(2))
    launch(3, [z, other], (8,), {"R": 4})
    assert [(grid, sizes) for grid, _, sizes in kernel.looked_up] == [((3, 1, 1), {"R": 4})] and not kernel.launches
    launch(5, [other, z], (9,), {"R": 4})
    assert kernel.launches == [((5, 1, 1), (other.data_ptr(), z.data_ptr(), 9, 4))]
    for tensors, numbers, sizes in (
        ([z.half(), other], (8,), {"R": 4}),  # another dtype
        ([z, other], (8,), {"R": 5}),
        ([z, other[0, 1:]], (8,), {"R": 4}),  # not aligned
        ([z, other], (2**31,), {"R": 4}),  # does not fit 32 bits
    ):
        launch(1, tensors, numbers, sizes)
    assert len(kernel.looked_up) == 5 and len(kernel.launches) == 1
