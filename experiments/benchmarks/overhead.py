"""Python's part of a training step, which a GPU that is faster than Python waits for.

    python experiments/benchmarks/overhead.py

48 adapted layers so narrow that they compute next to nothing, on a CPU. A launch of the gate's kernels is everything up to
Triton, then one small operation of PyTorch in its place: what Triton and the driver need for it is not measured. `launches`
counts these, and PyTorch's operations but for views and empty tensors: on a GPU nearly each is a kernel.
"""

import csv
from pathlib import Path
from typing import Any

import torch
from machine import cpu_name
from peft import LoraConfig, get_peft_model
from timing import Row, interleaved, row
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from foura import FouraConfig
from foura.adapter import kernels
from foura.adapter.kernels import launch
from foura.adapter.kernels.launcher import Launcher

LAYERS, WIDTH, RANK, ROUNDS = 48, 32, 2, 60
TOKENS = {"short": 8, "long": 260}  # of one sample; in the second its gate is shared by several programs
GATES = {
    f"foura_{form}_{scope}": {"gate": "adaptive", "gate_form": form, "gate_scope": scope}
    for form in ("entropy", "softmax")
    for scope in ("token", "sequence")
}


FREE = (
    "alias", "as_strided", "detach", "empty", "empty_like", "expand", "permute", "promote_types", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
)  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts PyTorch's operations that compute."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in FREE
        return func(*args, **(kwargs or {}))


class Small:
    """In place of a kernel, and of what Triton compiles it to."""

    one = torch.zeros(1)

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return self.run

    def run(self, *_arguments: Any, **_sizes: Any) -> "Small":
        torch.neg(self.one, out=self.one)
        return self


def replace_kernels() -> None:
    kernels.INTERPRETED = True  # gates take the way of their kernels on a CPU
    for launchers in vars(launch).values():
        for launcher in launchers.values() if isinstance(launchers, dict) else (launchers,):
            if isinstance(launcher, Launcher):
                launcher.kernel = Small()

    def as_on_a_gpu(self: Launcher, programs: int, tensors: Any, numbers: Any, sizes: Any) -> None:
        self._launch(tensors[0].device, (programs, 1, 1), tensors, numbers, sizes)

    Launcher.__call__ = as_on_a_gpu  # type: ignore[method-assign]


class Steps:
    """Training steps of LAYERS layers with a method on them."""

    def __init__(self, method: str, tokens: int) -> None:
        torch.manual_seed(0)
        layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        targets = [str(number) for number in range(LAYERS)]
        if method == "lora":
            config: Any = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
        else:
            transform = "dft" if method == "foura_dft" else "dct"
            config = FouraConfig(r=RANK, transform=transform, target_modules=targets, **GATES.get(method, {}))
        self.model = get_peft_model(layers, config)
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        self.x = torch.randn(1, tokens, WIDTH, requires_grad=True)

    def loss(self) -> Tensor:
        out: Tensor = self.model(self.x)
        return out.sum()

    def launches(self) -> float:
        """In a layer's forward and backward pass."""
        with Launches() as launches:
            self.loss().backward()
        return launches.count / LAYERS

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    torch.set_num_threads(1)
    replace_kernels()
    rows: list[Row] = []
    for setting, tokens in TOKENS.items():
        methods = {name: Steps(name, tokens) for name in ("lora", "foura_dct", "foura_dft", *GATES)}
        rows += interleaved(f"{setting} samples", "step", methods, ROUNDS, "cpu")
        counts = {name: [steps.launches()] for name, steps in methods.items()}
        rows += [
            row(f"{setting} samples", name, "launches", "a layer", count, counts["lora"])
            for name, count in counts.items()
        ]
    machine = f"{cpu_name()}, one thread, torch {torch.__version__}"
    with (Path(__file__).resolve().parent / "overhead.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0].fields(), "machine"], lineterminator="\n")
        writer.writeheader()
        for one in rows:
            shown = f"{one.median * 1e3 / LAYERS:7.0f} µs" if one.measure == "step" else f"{one.median:7.1f} launches"
            print(f"{one.setting}  {one.method:24}{shown} a layer{one.ratio:7.2f}")
            cells = one.fields().items()
            fields = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in cells}
            writer.writerow({**fields, "machine": machine})


if __name__ == "__main__":
    main()
