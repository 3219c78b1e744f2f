"""Interleaved timing: every round runs every method once, and a ratio compares runs of the same round."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

REFERENCE = "lora"


@dataclass
class Row:
    """One measure of one method: median and quartiles, and the median ratio to PEFT's LoRA of the same round."""

    setting: str
    method: str
    measure: str
    unit: str
    median: float
    q25: float
    q75: float
    ratio: float
    ratio_q25: float
    ratio_q75: float
    rounds: int

    def fields(self) -> dict[str, Any]:
        return asdict(self)


def interleaved(
    setting: str, measure: str, methods: Mapping[str, Callable[[], None]], rounds: int, device: str, inner: int = 1
) -> list[Row]:
    """Times of `inner` calls in ms each, after two rounds of warming up; the order rotates from round to round."""
    names, times = list(methods), {name: [] for name in methods}
    for number in range(rounds + 2):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            synchronise(device)
            start = time.perf_counter()
            for _ in range(inner):
                methods[name]()
            synchronise(device)
            if number >= 2:
                times[name].append((time.perf_counter() - start) / inner * 1e3)
    return [row(setting, name, measure, "ms", times[name], times[REFERENCE]) for name in names]


def row(setting: str, method: str, measure: str, unit: str, values: list[float], reference: list[float]) -> Row:
    ratios = [value / other for value, other in zip(values, reference, strict=True)]
    return Row(setting, method, measure, unit, *_quartiles(values), *_quartiles(ratios), len(values))


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def saved_mib(model: nn.Module, forward: Callable[[], Tensor]) -> float:
    """Memory that one forward pass saves for backward, MiB: unique storages that are no parameters or buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()  # as long as it lives, no address is used twice
    del kept
    return sum(storages.values()) / 2**20


def peak_mib(step: Callable[[], None], device: str) -> float:
    """The most memory in use at once during a step beyond what was in use before, MiB: CUDA's count, or the profiler's."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    from torch.profiler import ProfilerActivity, profile

    with silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak / 2**20


@contextmanager
def silent() -> Iterator[None]:
    """Nothing reaches standard error: some builds of torch print there whenever the profiler starts."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
