"""Triton compiles the gate's kernels for cards, and their blocks fit: a GPU is not needed for that."""

import pytest

from foura.adapter import kernels
from foura.adapter.gate_forms import GATE_FORMS

pytest.importorskip("triton", reason="Triton is not installed")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from foura.adapter.kernels import launch

KERNELS = {
    "token_forward": launch._token_forward,
    "token_backward": launch._token_backward,
    "gate_gradient": launch._gate_gradient,
    **{f"{form}_partial": launcher for form, launcher in launch._partial.items()},
    **{f"{form}_apply": launcher for form, launcher in launch._apply.items()},
    **{f"{form}_short_forward": launcher for form, launcher in launch._short_forward.items()},
    **{f"{form}_short_backward": launcher for form, launcher in launch._short_backward.items()},
    **{f"{form}_backward": launcher for form, launcher in launch._backward.items()},
}
FORMS = {"token_forward": ("entropy", "softmax"), "token_backward": ("entropy", "softmax")}
NUMBERS = ("T", "tiles", "samples")
COORDINATES = ("Z", "U", "grad_U", "grad_Z")


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "parts", "dtype"), [*((rank, 2, "bf16") for rank in kernels.ROOM), (64, 1, "fp32")])
@pytest.mark.parametrize(("name", "form"), [(name, form) for name in KERNELS for form in FORMS.get(name, ("",))])
def test_a_kernel_compiles_for_a_card_and_its_block_has_the_memory(
    name, form, rank, parts, dtype, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, hidden = KERNELS[name].kernel, len(GATE_FORMS["softmax"](rank, "token").bias_in)
    constants = {**launch._sizes(hidden, rank, rank * parts), "SLOPE": 2.5, "FORM": form, "MASKED": True}
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    types = {argument: _type(argument, constants, dtype) for argument in kernel.arg_names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(
        kernel, types, {(kernel.arg_names.index(key),): value for key, value in constants.items()}, aligned
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert compiled.metadata.shared <= kernels.ROOM[rank]


def _type(argument: str, constants: dict, dtype: str) -> str:
    if argument in constants:
        return "constexpr"
    if argument in NUMBERS:
        return "i32"
    return {"mask": "*u8"}.get(argument, f"*{dtype}" if argument in COORDINATES else "*fp32")
