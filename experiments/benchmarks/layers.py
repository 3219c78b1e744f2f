"""One frozen nn.Linear(d, d) with each adapter: training step, forward, one-token decoding, memory."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import peft
import torch
from peft import get_peft_model
from timing import Row, interleaved, peak_mib, row, saved_mib
from torch import Tensor, nn

from foura import FouraConfig

GATES = {
    "foura_gated_token": {"gate_form": "entropy", "gate_scope": "token"},
    "foura_gated_sequence": {"gate_form": "entropy", "gate_scope": "sequence"},
    "foura_softmax_token": {"gate_form": "softmax", "gate_scope": "token"},
    "foura_softmax_sequence": {"gate_form": "softmax", "gate_scope": "sequence"},
}
METHODS = (
    "frozen",
    "lora",
    "foura_dct",
    "foura_dft",
    *GATES,
    "dora",
    "fourierft",
    "textbook",
)
SAMPLES = 8  # a sequence gate sees this many samples


class Textbook(nn.Module):
    """FouRA as the paper writes it, and as the public sketch computes it: the activations are transformed."""

    def __init__(self, linear: nn.Linear, r: int) -> None:
        super().__init__()
        d = linear.in_features
        self.linear = linear
        self.A, self.B = nn.Parameter(torch.randn(r, d) / math.sqrt(d)), nn.Parameter(torch.randn(d, r) / 50)
        self.register_buffer("F", dct(d))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + ((x @ self.F.T) @ self.A.T) @ self.B.T @ self.F


@lru_cache
def dct(length: int) -> Tensor:
    n = torch.arange(length, dtype=torch.float64)
    F = torch.cos(math.pi / length * (n[None] + 0.5) * n[:, None]) * math.sqrt(2.0 / length)
    F[0] /= math.sqrt(2.0)
    return F.float()


def adapted(method: str, d: int, r: int, device: str, dtype: torch.dtype) -> nn.Module:
    """The layer with the method on it, its B not zero, as after some training."""
    torch.manual_seed(0)
    linear = nn.Linear(d, d)
    if method == "frozen":
        return linear.requires_grad_(False).to(device, dtype)
    if method == "textbook":
        return Textbook(linear.requires_grad_(False), r).to(device, dtype)
    model = get_peft_model(nn.Sequential(linear), config(method, r), autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "foura_B" in name or "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
    layer = model.base_model.model[
        0
    ]  # the layer itself, as inside a big model: the wrapper's cost is not the adapter's
    return layer.to(device, dtype)


def config(method: str, r: int, targets: Any = ("0",), **fields: Any) -> peft.PeftConfig:
    targets = list(targets)
    if method in ("lora", "dora"):
        return peft.LoraConfig(r=r, lora_alpha=r, target_modules=targets, use_dora=method == "dora")
    if method == "fourierft":
        return peft.FourierFTConfig(n_frequency=1000, target_modules=targets)
    if method in GATES:
        fields |= {"gate": "adaptive", **GATES[method]}
    transform = "dft" if method == "foura_dft" else "dct"
    return FouraConfig(r=r, foura_alpha=r, transform=transform, target_modules=targets, **fields)


def measure(
    d: int, r: int, tokens: int, rounds: int, device: str, dtype: torch.dtype, say: Callable[[str], None]
) -> list[Row]:
    """Every measure of every method at one width, rank and number of tokens."""
    setting = f"d={d} r={r} tokens={tokens}"
    say(setting)
    methods = [name for name in METHODS if tokens > 1 or GATES.get(name, {}).get("gate_scope") != "sequence"]
    models = {name: adapted(name, d, r, device, dtype) for name in methods}
    samples = SAMPLES if tokens % SAMPLES == 0 else 1
    x = torch.randn(samples, tokens // samples, d, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    # a timing should last a few ms, or the clock and the loop are what is measured
    inner = max(1, round(4e8 / (d * d * tokens + 2e7)))

    def step(model: nn.Module) -> None:
        x.grad = None
        for parameter in model.parameters():
            parameter.grad = None
        model(x).backward(grad)

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(x)

    steps = {name: (lambda model=model: step(model)) for name, model in models.items()}
    rows = interleaved(setting, "step", steps, rounds, device, inner)
    kept = {name: saved_mib(model, lambda model=model: model(x)) for name, model in models.items()}
    peaks = {name: peak_mib(call, device) for name, call in steps.items()} if tokens > 1 else {}
    for values, name_of in ((kept, "saved"), (peaks, "peak")):
        rows += [row(setting, name, name_of, "MiB", [value], [values["lora"]]) for name, value in values.items()]
    for model in models.values():
        model.eval()
    forwards = {name: (lambda model=model: forward(model)) for name, model in models.items()}
    return rows + interleaved(setting, "decode" if tokens == 1 else "forward", forwards, rounds, device, 3 * inner)
