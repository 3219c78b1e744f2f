"""Constant tensors (basis matrices, FFT twiddles), computed once per process and shared by every layer.

A function cache and not a module buffer, so that no matrix ever enters a checkpoint.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: cache the tensors that `make` returns for its hashable arguments.

    `make` runs on the CPU whatever the default device, without gradients. An exported graph
    (torch.export, torch.jit.trace) holds the values, not their computation; torch.compile's has `graph.fold` instead.
    """

    def made(*arguments: Any) -> Tensor:
        with torch.no_grad(), torch.device("cpu"):
            return make(*arguments)

    @lru_cache(maxsize=64)
    def cached(*arguments: Any) -> Tensor:
        # In a thread of its own, because modes belong to threads: an inference tensor, once cached, could not be used in
        # training, a fake tensor of torch.export has no values, and a trace would draw a random basis anew at every call.
        with ThreadPoolExecutor(1) as clean:
            return clean.submit(made, *arguments).result()

    def look_up(*arguments: Any) -> Tensor:
        return cached(*arguments)

    return wraps(make)(torch.compiler.assume_constant_result(look_up))
