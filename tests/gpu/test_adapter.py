"""The adapter on CUDA against float64 on the CPU: transform x gate x precision x (eager, compiled) x the states of a model."""

import copy
import itertools

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import foura
from foura import FouraConfig
from tests.helpers.kernels import CASES, check

TRANSFORMS = ("dct", "dft", "identity", "random")
GATES = {
    "none": {},
    "sequence": {"gate": "adaptive", "gate_scope": "sequence"},
    "token": {"gate": "adaptive", "gate_scope": "token"},
    "softmax": {"gate": "adaptive", "gate_scope": "sequence", "gate_form": "softmax"},
    "frozen": {"gate": "frozen"},
}
# (dtype of the model, of its adapter, of autocast) and the relative error that it may have
PRECISIONS = {
    "float64": (torch.float64, torch.float64, None, 1e-9),
    "float32": (torch.float32, torch.float32, None, 2e-3),  # TF32, if PyTorch is set so
    "bfloat16": (torch.bfloat16, torch.bfloat16, None, 5e-2),
    "float16": (torch.float16, torch.float16, None, 1e-2),
    "bfloat16 with a float32 adapter": (torch.bfloat16, torch.float32, None, 5e-2),
    "autocast bfloat16": (torch.float32, torch.float32, torch.bfloat16, 5e-2),
    "autocast float16": (torch.float32, torch.float32, torch.float16, 1e-2),
    "autocast of a bfloat16 model": (torch.bfloat16, torch.float32, torch.bfloat16, 5e-2),
}


class Net(nn.Module):
    """Widths by matrix and by FFT, a fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 3 * 400), nn.Linear(1200, 1100, bias=False)
        self.head = nn.Linear(1100, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.out(torch.tanh(self.qkv(x)))))


def adapted(transform: str, gate: str) -> PeftModel:
    """On the CPU, in float64."""
    torch.manual_seed(0)
    config = FouraConfig(
        r=16, foura_alpha=24, transform=transform, target_modules=["qkv", "out", "head"], output_splits={"qkv": 3},
        init_weights=False, **GATES[gate],
    )  # fmt: skip
    model = get_peft_model(Net().double(), config, autocast_adapter_dtype=False)
    for layer in foura.adapter.freeze.foura_layers(model).values():
        if gate == "frozen":
            layer.foura_gate_mask["default"][1::3] = False
    return model


def on_the_gpu(model: nn.Module, precision: str) -> nn.Module:
    dtype, adapter_dtype, _, _ = PRECISIONS[precision]
    model = copy.deepcopy(model).to("cuda", dtype)
    for name, parameter in model.named_parameters():
        if "foura_" in name:
            parameter.data = parameter.data.to(adapter_dtype)
    return model


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, 3, 40, 64, dtype=torch.float64, generator=generator))


def run(model, x: Tensor, precision: str) -> Tensor:
    dtype, _, autocast, _ = PRECISIONS[precision]
    x = x.to("cuda", dtype if x.dtype == torch.float64 else x.dtype)
    with torch.autocast("cuda", autocast or torch.bfloat16, enabled=autocast is not None):
        return model(x)


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.detach().double().cpu() - wanted).norm() / wanted.norm()).item()


def trained(model: nn.Module, out: Tensor, grad: Tensor) -> dict[str, Tensor]:
    out.backward(grad.to(out.device, out.dtype))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and "bias_out" not in name}


def assert_alike(model, runs, reference, precision: str) -> None:
    bound, (x, grad) = PRECISIONS[precision][3], data()
    wanted = reference(x)
    wanted_grads = trained(reference, wanted, grad)
    for _ in range(2):  # the second is accumulated on kept factors
        model.zero_grad()
        out = run(runs, x, precision)
        assert error(out, wanted.detach()) < bound
        grads = trained(model, out, grad)
    assert grads.keys() == wanted_grads.keys()
    for name, gradient in grads.items():
        assert error(gradient, wanted_grads[name]) < 3 * bound, name


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("transform", "gate", "precision"), list(itertools.product(TRANSFORMS, GATES, PRECISIONS)))
def test_training(transform, gate, precision, compiled) -> None:
    reference = adapted(transform, gate)
    model = on_the_gpu(reference, precision).train()
    torch._dynamo.reset()
    runs = torch.compile(model, fullgraph=True) if compiled else model
    assert_alike(model, runs, reference.train(), precision)


@pytest.mark.parametrize(("transform", "gate", "precision"), list(itertools.product(TRANSFORMS, GATES, PRECISIONS)))
def test_evaluation_freezing_merging_and_export(transform, gate, precision, tmp_path) -> None:
    bound, (x, _) = PRECISIONS[precision][3], data()
    reference = adapted(transform, gate).eval()
    model = on_the_gpu(reference, precision).eval()
    with torch.no_grad():
        for rows in (x, x[:, :1]):  # whole, and one token as in decoding
            assert error(run(model, rows, precision), reference(rows)) < bound
            assert error(run(model, rows, precision), reference(rows)) < bound
        if GATES[gate].get("gate") == "adaptive":
            foura.freeze_gates(reference, [x])
            for name, layer in foura.adapter.freeze.foura_layers(model).items():
                twin = foura.adapter.freeze.foura_layers(reference)[name]
                del layer.foura_gate["default"]
                layer.foura_gate_mask["default"] = twin.foura_gate_mask["default"].cuda()
                model.peft_config["default"].gate = "frozen"
        wanted = reference(x)
        assert error(run(model, x, precision), wanted) < bound
        foura.save_as_lora(model, tmp_path)
        base = copy.deepcopy(model).unload()
        lora = PeftModel.from_pretrained(base, str(tmp_path), autocast_adapter_dtype=False).eval()
        assert error(run(lora, x, "float32" if precision == "float32" else precision), wanted) < bound
        assert error(run(copy.deepcopy(model).merge_and_unload(), x, precision), wanted) < bound


def test_float16_with_a_gradient_scaler() -> None:
    """A step that the scaler leaves out changes nothing; a step that it takes is seen."""
    model = on_the_gpu(adapted("dct", "token"), "autocast float16").train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, scaler = torch.optim.AdamW(parameters, lr=1e-2), torch.amp.GradScaler("cuda", init_scale=2.0**30)
    x, losses = data()[0], []
    for _ in range(30):
        loss = run(model, x, "autocast float16").float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] == losses[0] and losses[-1] < 0.9 * losses[0]


def test_a_captured_graph_folds_in_every_replay() -> None:
    model = on_the_gpu(adapted("dct", "none"), "float32").eval()
    x = data()[0].float().cuda()
    with torch.no_grad():
        for _ in range(3):
            model(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
        for parameter in model.parameters():
            parameter.mul_(0.5)
        graph.replay()
        torch.testing.assert_close(out, model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(case) -> None:
    half = {"float32": 1.0, "float16": 1e2, "bfloat16": 1e3}[case.dtype]
    result = check(case, "cuda")
    assert result["out"] < 1e-5 * half and result["grad"] < 1e-4 * half and result["same"]
