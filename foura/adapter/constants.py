"""Constant tensors (basis matrices, FFT twiddles), computed once per process and shared by every layer.

A function cache and not a module buffer, so that no matrix ever enters a checkpoint.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: cache the tensors that `make` returns for its hashable arguments.

    `make` runs on the CPU whatever the default device, without gradients. Compiled graphs do not get here: folding is one
    operator for them.
    """

    @lru_cache(maxsize=64)
    def cached(*arguments: Any) -> Tensor:
        # an inference tensor, once cached, could not be used in training
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return make(*arguments)

    return wraps(make)(cached)
