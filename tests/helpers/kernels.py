"""The gate's kernels against the textbook in float64: `python -m tests.helpers.kernels` prints errors by case as JSON.

With TRITON_INTERPRET=1, which Triton reads when kernels are defined, they run on the CPU; so this is a process of its own.
"""

import copy
import json
import sys
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from foura.adapter.config import FouraConfig
from foura.adapter.gate import GATE_SCOPES
from foura.adapter.gate_forms import GATE_FORMS, NetworkGate
from foura.adapter.kernels import launch
from foura.adapter.kernels.launcher import Launcher
from foura.adapter.linear import Linear
from tests.reference import foura as textbook


@dataclass(frozen=True)
class Case:
    form: str
    scope: str
    rank: int = 5
    tokens: int = 70  # more than a tile; with 261, or 70 at rank 256, more than the kernels for short samples take
    parts: int = 1  # 2: complex coordinates, as of the DFT
    padded: bool = False
    dtype: str = "float32"


FORMS = ("entropy", "softmax")  # that have kernels
CASES = [
    *(Case(form, scope, parts=parts) for form in FORMS for scope in GATE_SCOPES for parts in (1, 2)),
    *(Case(form, "sequence", parts=parts, padded=True) for form in FORMS for parts in (1, 2)),
    *(Case(form, scope, rank=256, tokens=19) for form in FORMS for scope in GATE_SCOPES),
    *(Case(form, scope, rank=24, tokens=33, dtype=dtype)
      for form in FORMS for scope in GATE_SCOPES for dtype in ("bfloat16", "float16")),
    *(Case(form, "sequence", tokens=1) for form in FORMS),
    *(Case(form, "sequence", tokens=261, parts=parts, padded=padded)
      for form in FORMS for parts in (1, 2) for padded in (False, True)),
    *(Case(form, "sequence", rank=256, tokens=70) for form in FORMS),
    *(Case(form, "sequence", rank=24, tokens=261, dtype=dtype) for form in FORMS for dtype in ("bfloat16", "float16")),
    *(Case("softmax", scope, rank=rank, tokens=37, parts=2) for scope in GATE_SCOPES for rank in (1, 4, 16, 64)),
]  # fmt: skip


def check(case: Case, device: str = "cpu") -> dict[str, float | bool]:
    """Relative errors of the output and of the gradients, and if a second run gives the same bits."""
    gate, z, grad = _data(case)
    out, *grads = _by_kernels(gate, z.to(device), grad.to(device))
    again = _by_kernels(gate, z.to(device), grad.to(device))
    wanted, *wanted_grads = _by_textbook(gate, z, grad)
    same = all(torch.equal(one, other) for one, other in zip((out, *grads), again, strict=True))
    return {"out": _error(out, wanted), "grad": max(map(_error, grads, wanted_grads)), "same": same}


def _data(case: Case) -> tuple[NetworkGate, Tensor, Tensor]:
    torch.manual_seed(0)
    gate = GATE_FORMS[case.form](case.rank, case.scope)
    with torch.no_grad():
        for parameter in gate.parameters():
            nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    z, grad = torch.randn(2, 3, case.tokens, case.rank * case.parts, dtype=getattr(torch, case.dtype))
    if case.padded:
        gate.padding_mask = torch.arange(case.tokens)[None] < torch.tensor([[case.tokens // 2], [0], [case.tokens]])
    return gate.to(z.dtype), z, grad


def _by_kernels(gate: NetworkGate, z: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    gate, z = copy.deepcopy(gate).to(z.device), z.clone().requires_grad_()
    if gate.padding_mask is not None:
        gate.padding_mask = gate.padding_mask.to(z.device)
    call = gate.kernel_call(z)
    assert call is not None, "no kernel for this case"
    out = call(z)
    inputs = [z, *(p for name, p in gate.named_parameters() if _counts(gate, name))]
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def _counts(gate: NetworkGate, name: str) -> bool:
    """The entropy over tokens does not see the last bias of a sequence gate."""
    return gate.kernels != "entropy" or gate.scope == "token" or name != "bias_out"


def _by_textbook(gate: NetworkGate, z: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    gate, z = copy.deepcopy(gate).double(), z.double().requires_grad_()
    rank = gate.weight_in.shape[1]
    parts = z.unflatten(-1, (-1, rank))
    u = z if z.shape[-1] == rank else parts.square().sum(-2).sqrt()
    weights = gate.weight_in, gate.bias_in, gate.weight_out, gate.bias_out
    by_token = gate.scope == "token" or z.shape[1] == 1
    if gate.kernels != "entropy":
        gates = partial(textbook.form_gate, gate.kernels, gate.scope)
    else:
        gates = textbook.token_gate if by_token else textbook.sequence_gate
    if by_token:
        g = gates(u, *weights)
    else:
        mask = torch.ones(u.shape[:2], dtype=torch.bool) if gate.padding_mask is None else gate.padding_mask
        mask = mask | ~mask.any(1, keepdim=True)
        g = torch.cat([gates(one[real][None], *weights) for one, real in zip(u, mask, strict=True)])
    out = (parts * g.unsqueeze(-2)).flatten(-2)
    inputs = [z, *(p for name, p in gate.named_parameters() if _counts(gate, name))]
    return out.detach(), *torch.autograd.grad(out, inputs, grad.double())


def _error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-12)).item()


def check_layer(form: str, transform: str, scope: str, compiled: bool) -> float:
    """The largest relative error of a layer's output and gradients by kernels, against eager PyTorch in float64."""
    torch.manual_seed(0)
    fields = {"gate": "adaptive", "gate_form": form, "gate_scope": scope, "init_weights": False}
    config = FouraConfig(r=4, foura_alpha=6, transform=transform, **fields)
    layer = Linear(nn.Linear(12, 10).requires_grad_(False), "default", config, 4, 6.0, 1)
    twin, x = copy.deepcopy(layer).double(), torch.randn(2, 9, 12)
    results = []
    for one, dtype in ((layer, torch.float32), (twin, torch.float64)):
        inputs = x.to(dtype).requires_grad_()
        run = torch.compile(one, backend="aot_eager", fullgraph=True) if compiled and one is layer else one
        out = run(inputs)
        seen = [p for n, p in one.named_parameters() if p.requires_grad and (form != "entropy" or "bias_out" not in n)]
        wanted = [inputs, *seen]
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), wanted)])
    return max(map(_error, *results))


EMPTY = ((0, 12), (0, 3, 12), (3, 0, 12), (2, 0, 3, 12))  # inputs of layers


def check_empty(form: str, transform: str, scope: str) -> list[str]:
    """What is wrong with a layer's output and gradients for inputs without a token; nothing is the right answer."""
    fields = {"gate": "adaptive", "gate_form": form, "gate_scope": scope, "init_weights": False}
    layer = Linear(
        nn.Linear(12, 10).requires_grad_(False), "default", FouraConfig(transform=transform, **fields), 4, 6.0, 1
    )
    faults = []
    for shape in EMPTY:
        x = torch.zeros(shape, requires_grad=True)
        for run in (layer, partial(layer.delta, "default")):
            layer.zero_grad()
            try:
                with torch.no_grad():
                    evaluated = run(x)
                out = run(x)
                out.sum().backward()
            except (RuntimeError, ValueError) as error:
                faults.append(f"{shape}: {error}")
                continue
            shapes = (
                {out.shape, evaluated.shape} == {(*shape[:-1], 10)} and x.grad is not None and x.grad.shape == x.shape
            )
            grads = [p.grad for p in layer.parameters() if p.grad is not None]
            if not (shapes and grads and all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)):
                faults.append(f"{shape}: output {tuple(out.shape)}, gradients {grads}")
    return faults


def check_operator(form: str, scope: str) -> dict[str, str]:
    """PyTorch's own tests of an operator: its schema, its fake, its gradient under compilation."""
    gate, z, _ = _data(Case(form, scope, tokens=5, padded=True))
    call = gate.kernel_call(z)
    assert call is not None
    padding = None if call.mask is None else call.mask.to(torch.uint8)
    inputs = (z.requires_grad_(), *call.weights, form, call.by_token, padding)
    # weights of a size that is left open, which "dynamic" tries, do not occur
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    return torch.library.opcheck(torch.ops.foura.gate.default, inputs, test_utils=tests)


def count_launches(form: str, scope: str, tokens: int) -> dict[str, list[str]]:
    """The kernels that a layer's gate launches in a forward and in a backward pass."""
    fields = {"gate": "adaptive", "gate_form": form, "gate_scope": scope, "init_weights": False}
    layer = Linear(nn.Linear(12, 10).requires_grad_(False), "default", FouraConfig(r=4, **fields), 4, 4.0, 1)
    launched: dict[str, list[str]] = {"forward": [], "backward": []}
    call = Launcher.__call__
    try:
        Launcher.__call__ = lambda self, *args: (launched[direction].append(self.kernel.__name__), call(self, *args))[1]
        direction = "forward"
        out = layer(torch.randn(3, tokens, 12))
        direction = "backward"
        out.sum().backward()
    finally:
        Launcher.__call__ = call
    return launched


def main() -> None:
    launch.PROGRAMS = 2  # so that a program of a backward pass takes several tiles, and tiles of several samples
    gates = {str(asdict(case)): check(case) for case in CASES}
    layers = {
        f"{form} {transform} {scope} {'compiled' if compiled else 'eager'}": check_layer(form, transform, scope, compiled)
        for form in FORMS for transform in ("dct", "dft") for scope in GATE_SCOPES for compiled in (False, True)
    }  # fmt: skip
    operators = {f"{form} {scope}": check_operator(form, scope) for form in FORMS for scope in GATE_SCOPES}
    empty = {
        f"{form} {transform} {scope}": check_empty(form, transform, scope)
        for form in FORMS for transform in ("dct", "dft") for scope in GATE_SCOPES
    }  # fmt: skip
    launches = {
        f"{form} {scope} {tokens}": count_launches(form, scope, tokens)
        for form in FORMS for scope in GATE_SCOPES for tokens in (197, 1024)
    }  # fmt: skip
    found = {"gates": gates, "layers": layers, "operators": operators, "empty": empty, "launches": launches}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
