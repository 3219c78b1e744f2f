"""The same numbers in every way of running: autocast, bf16, compile, checkpointing, accumulation, DDP, hooks, padding."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

import foura
from foura import FouraConfig
from foura.adapter.gate import Gate
from foura.adapter.linear import Linear

VARIANTS = {
    "dct": {"transform": "dct"},
    "dft": {"transform": "dft"},
    "sequence": {"gate": "adaptive"},
    "token": {"gate": "adaptive", "gate_scope": "token"},
    "dft token": {"transform": "dft", "gate": "adaptive", "gate_scope": "token"},
    "frozen": {"gate": "frozen"},
    "sigmoid": {"gate": "adaptive", "gate_form": "sigmoid", "gate_sparsity": 0.1},
    "softmax token": {"gate": "adaptive", "gate_form": "softmax", "gate_scope": "token"},
    "hard token": {"gate": "adaptive", "gate_form": "hard", "gate_scope": "token"},
    "hard_concrete": {"gate": "adaptive", "gate_form": "hard_concrete"},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(24, 32), nn.Linear(32, 24, bias=False), nn.Linear(24, 5)
        self.checkpointed: dict[str, bool] | None = None

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        block = lambda h: torch.tanh(self.two(torch.tanh(self.one(h))))  # noqa: E731
        h = block(x) if self.checkpointed is None else checkpoint(block, x, **self.checkpointed)
        return self.three(h)


def adapted(variant: str, dtype=torch.float32, **fields) -> nn.Module:
    torch.manual_seed(0)
    config = FouraConfig(r=4, foura_alpha=3, target_modules=["one", "two", "three"], **VARIANTS[variant], **fields)
    model = get_peft_model(Net().to(dtype), config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "foura_" in name:
                nn.init.normal_(parameter, std=0.3)
            if variant == "hard token" and name.endswith("bias_out"):  # no score where rounding could decide
                parameter.copy_(torch.tensor([3.0, -3.0, 3.0, 3.0]))
    return model.train(variant != "hard_concrete")  # which draws noise in training


def data(rows: int = 6, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, 8, 24, dtype=dtype), torch.randn(rows, 8, 5, dtype=dtype)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor, run=None) -> tuple[torch.Tensor, dict]:
    out = (model if run is None else run)(x)
    wide = torch.promote_types(out.dtype, torch.float32)
    (out.to(wide) - y.to(wide)).square().mean().backward()
    return out.detach(), gradients(model)


def assert_alike(one, other, bound: float) -> None:
    """Output and every gradient agree within `bound` of their own norm.

    The floor is for the last bias of a sequence gate: a softmax over tokens does not see it, its gradient is zero.
    """
    pairs = [(one[0], other[0]), *((one[1][name], other[1][name]) for name in one[1])]
    assert one[1].keys() == other[1].keys() and len(pairs) > 6
    for a, b in pairs:
        assert (a.float() - b.float()).norm() <= bound * b.float().norm() + 1e-8


@every_variant
def test_autocast_agrees_with_float32(variant) -> None:
    model, (x, y) = adapted(variant), data()
    plain = trained(copy.deepcopy(model), x, y)

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cast(x)

    cast = copy.deepcopy(model)
    mixed = trained(cast, x, y, run)
    assert mixed[0].dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in mixed[1].values())
    assert_alike(mixed, plain, 0.06)


@pytest.mark.parametrize("scope", ["sequence", "token"])
def test_autocast_that_computes_norms_in_float32(scope, monkeypatch) -> None:
    """CUDA's does, the CPU's does not."""
    norm = torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda *args, **kwargs: norm(*args, **kwargs).float())
    fields = {"transform": "dft", "gate": "adaptive", "gate_scope": scope, "init_weights": False}
    torch.manual_seed(0)
    model = get_peft_model(Net(), FouraConfig(r=4, target_modules=["one", "two"], **fields))
    x, y = data()
    plain = trained(copy.deepcopy(model), x, y)

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    mixed = trained(model, x, y, run)
    assert mixed[0].dtype == torch.bfloat16
    assert_alike(mixed, plain, 0.06)
    with torch.no_grad():
        assert run(x).dtype == torch.bfloat16


@every_variant
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_bf16_agrees_with_float32(variant, adapter_dtype) -> None:
    model, (x, y) = adapted(variant), data()
    plain = trained(copy.deepcopy(model), x, y)
    half = copy.deepcopy(model).to(torch.bfloat16)
    if adapter_dtype == torch.float32:  # what PEFT makes of a bf16 model by default
        for name, parameter in half.named_parameters():
            if "foura_" in name:
                parameter.data = parameter.data.float()
    mixed = trained(half, x.bfloat16(), y)
    assert mixed[0].dtype == torch.bfloat16
    assert_alike(mixed, plain, 0.1)


@pytest.mark.slow
@every_variant
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_agrees_with_eager_and_does_not_break_the_graph(variant, backend) -> None:
    model, (x, y) = adapted(variant), data()
    eager = trained(copy.deepcopy(model), x, y)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_alike(trained(model, x, y, compiled), eager, 1e-5)


@every_variant
def test_the_graph_does_not_break(variant) -> None:
    torch._dynamo.reset()
    model, (x, _) = adapted(variant), data()
    compiled = torch.compile(model.base_model.model.one, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model.base_model.model.one(x), rtol=1e-5, atol=1e-5)


@every_variant
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(variant, reentrant) -> None:
    model, (x, y) = adapted(variant), data()
    plain = trained(copy.deepcopy(model), x, y)
    model.base_model.model.checkpointed = {"use_reentrant": reentrant}
    assert_alike(trained(model, x.requires_grad_(), y), plain, 1e-6)


@every_variant
def test_accumulated_gradients_are_those_of_the_whole_batch(variant) -> None:
    model, (x, y) = adapted(variant, torch.float64), data(6, torch.float64)
    whole = trained(copy.deepcopy(model), x, y)[1]
    for gate in (module for module in model.modules() if isinstance(module, Gate)):
        gate.price /= 3  # every micro-batch pays it
    for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
        ((model(x[part]) - y[part]).square().mean() / 3).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-10)


DDP = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.unit.test_adapter_modes import adapted, data, gradients
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
half = slice(3 * dist.get_rank(), 3 * dist.get_rank() + 3)
for variant in sys.argv[3:]:
    for checkpointed in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        model, (x, y) = adapted(variant, torch.float64), data(6, torch.float64)
        model(x)  # folded before DDP sees the model
        for _ in range(2):  # the second is accumulated
            (model(x) - y).square().mean().backward()
        alone = gradients(model)
        model.zero_grad()
        model.base_model.model.checkpointed = checkpointed
        parallel = DistributedDataParallel(model)
        for number in range(2):
            inputs = x[half].clone().requires_grad_()
            if number:
                (parallel(inputs) - y[half]).square().mean().backward()
            else:
                with parallel.no_sync():
                    (parallel(inputs) - y[half]).square().mean().backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, alone[name], rtol=1e-9, atol=1e-10)
dist.barrier()
print("agreed", flush=True)
os._exit(0)
"""

FSDP = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from tests.unit.test_adapter_modes import adapted, data, gradients
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
half = slice(3 * dist.get_rank(), 3 * dist.get_rank() + 3)
for variant in sys.argv[3:]:
    for reshard in (True, False):
        alone, (x, y) = adapted(variant), data(6)
        model = adapted(variant)
        for name in ("one", "two"):
            fully_shard(getattr(model.base_model.model, name), reshard_after_forward=reshard)
        fully_shard(model)
        optimizers = [torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5) for net in (alone, model)]
        for _ in range(2):
            for _ in range(2):
                (alone(x) - y).square().mean().backward()
                (model(x[half]) - y[half]).square().mean().backward()
            for name, gradient in gradients(model).items():
                torch.testing.assert_close(gradient.full_tensor(), alone.get_parameter(name).grad, rtol=1e-4, atol=1e-6)
            for net, optimizer in zip((alone, model), optimizers):
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                torch.testing.assert_close(model(x), alone(x), rtol=1e-4, atol=1e-5)
dist.barrier()
print("agreed", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("script", "variants"), [(DDP, VARIANTS), (FSDP, ["dct", "dft token"])], ids=["ddp", "fsdp"])
def test_two_processes_agree_with_one(script, variants, tmp_path, root) -> None:
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    processes = [
        subprocess.Popen(
            [*command, str(rank), *variants], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert out.decode().strip() == "agreed", err.decode()[-2000:]


def test_hooks_see_the_base_layers_own_output_and_gradient() -> None:
    """The sums are made in place, but not in a tensor that somebody else holds."""
    model, (x, y) = adapted("dct"), data()
    plain = trained(copy.deepcopy(model), x, y)
    layer = model.base_model.model.two.base_layer
    seen = {}
    layer.register_forward_hook(lambda _m, inputs, out: seen.update(x=inputs[0].detach().clone(), out=out))
    layer.register_full_backward_hook(
        lambda _m, grad_in, grad_out: seen.update(grad_in=grad_in[0], grad_out=grad_out[0])
    )
    assert_alike(trained(model, x, y), plain, 1e-6)
    torch.testing.assert_close(seen["out"], seen["x"] @ layer.weight.T)
    torch.testing.assert_close(seen["grad_in"], seen["grad_out"] @ layer.weight)


@pytest.mark.parametrize("training", [True, False])
def test_a_patched_forward_of_the_base_layer_is_called(training) -> None:
    """As accelerate patches it, to bring weights to the device."""
    model, (x, _) = adapted("dct"), data()
    layer = next(module for module in model.modules() if isinstance(module, Linear))
    x = torch.randn(6, layer.in_features)
    with torch.set_grad_enabled(training):
        out, plain = layer(x), layer.base_layer(x)
        forward, seen = layer.base_layer.forward, []

        def patched(x: torch.Tensor) -> torch.Tensor:
            seen.append(forward(x) + 1.0)
            return seen[-1]

        layer.base_layer.forward = patched
        torch.testing.assert_close(layer(x), out + 1.0)
    if training:
        torch.testing.assert_close(seen[0], plain + 1.0)  # whoever patched it may hold its output


def test_only_what_is_trained_is_computed_and_returned() -> None:
    model, (x, y) = adapted("dct"), data()
    layer = model.base_model.model.one
    layer.foura_A["default"].requires_grad_(False)
    _, some = trained(model, x.requires_grad_(), y)
    assert not any("one.foura_A" in name for name in some) and x.grad is not None


@every_variant
def test_dropout_drops_in_training_alone(variant) -> None:
    model, (x, _) = adapted(variant, foura_dropout=0.5), data()
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    torch.manual_seed(3)
    model.train()
    layer = model.base_model.model.one
    torch.manual_seed(3)
    fast = layer(x)
    torch.manual_seed(3)
    slow = layer.base_layer(x) + layer.delta("default", x)
    torch.testing.assert_close(fast, slow)


# -- gates and padding


def padded(x: torch.Tensor, by: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(x.shape[0], x.shape[1] + by, dtype=torch.long)
    mask[:, x.shape[1] :] = 0
    return torch.cat([x, 50 * torch.randn(x.shape[0], by, x.shape[2], dtype=x.dtype)], dim=1), mask


@pytest.mark.parametrize("variant", [name for name, fields in VARIANTS.items() if fields.get("gate") == "adaptive"])
def test_padding_does_not_move_a_gate(variant) -> None:
    model, (x, _) = adapted(variant, torch.float64).eval(), data(3, torch.float64)
    longer, mask = padded(x, 5)
    torch.testing.assert_close(model(longer, attention_mask=mask)[:, :8], model(x), rtol=0, atol=1e-10)
    with foura.attention_mask(model, mask):
        inside = model.base_model.model(longer)[:, :8]  # as a model that carries FouRA without the wrapper
    torch.testing.assert_close(inside, model(x), rtol=0, atol=1e-10)
    if "token" not in variant:
        assert not torch.allclose(model(longer)[:, :8], model(x))  # without the mask it would
    for ranks in (foura.effective_rank, foura.freeze_gates):
        assert ranks(model, [{"x": longer, "attention_mask": mask}]) == pytest.approx(
            ranks(adapted(variant, torch.float64), [x])
        )


@pytest.mark.parametrize("variant", ["sequence", "sigmoid", "hard_concrete"])
def test_rows_of_a_mixed_batch_keep_their_own_padding(variant) -> None:
    model, (x, _) = adapted(variant, torch.float64).eval(), data(3, torch.float64)
    longer, mask = padded(x, 5)
    rows = model(longer, attention_mask=mask, adapter_names=["default", "__base__", "default"])
    torch.testing.assert_close(rows[[0, 2], :8], model(x)[[0, 2]], rtol=0, atol=1e-10)


def test_a_checkpointed_step_sees_the_padding_again() -> None:
    model, (x, y) = adapted("sequence", torch.float64), data(3, torch.float64)
    longer, mask = padded(x, 5)

    def step(model: nn.Module) -> dict:
        (model(longer.clone().requires_grad_(), attention_mask=mask)[:, :8] - y).square().mean().backward()
        return gradients(model)

    plain = step(copy.deepcopy(model))
    model.base_model.model.checkpointed = {"use_reentrant": False}
    for name, gradient in step(model).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-9, atol=1e-12)


def test_a_sequence_gate_does_not_drift_with_length() -> None:
    """Said twice, a sequence has the gates that it has said once; fresh tokens move them by chance alone."""
    gate = foura.adapter.gate_forms.EntropyGate(16, "sequence").double()
    u = torch.randn(8, 20, 16, dtype=torch.float64)
    torch.testing.assert_close(gate(u.repeat(1, 5, 1)), gate(u), rtol=0, atol=1e-12)
    short, long = (gate(torch.randn(64, tokens, 16, dtype=torch.float64)).mean() for tokens in (32, 1024))
    assert abs((short - long).item()) < 0.01
