"""Launching Triton kernels at the cost of a launch.

Triton looks up the compiled kernel at every launch: dtype, alignment and divisibility of each argument. That takes longer than
the gate's kernels run. A `Launcher` remembers the kernel that Triton answered with, by what it was specialised on.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16  # bytes; Triton specialises on it


class Launcher:
    """launcher(programs, tensors, numbers, sizes) launches kernel[(programs, 1, 1)](*tensors, *numbers, **sizes).

    A grid has one axis: CUDA allows 2³¹ - 1 programs along the first, and only 65,535 along the others.

    Args:
        kernel: a @triton.jit function that takes tensors, then numbers that it does not specialise on, then constants.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self, programs: int, tensors: Sequence[Tensor], numbers: tuple[int, ...], sizes: dict[str, Any]
    ) -> None:
        device, grid = tensors[0].device, (programs, 1, 1)
        if device.type != "cuda":  # the interpreter
            self.kernel[grid](*tensors, *numbers, **sizes)
        elif device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._launch(device, grid, tensors, numbers, sizes)
        else:
            self._launch(device, grid, tensors, numbers, sizes)

    def _launch(
        self,
        device: torch.device,
        grid: Any,
        tensors: Sequence[Tensor],
        numbers: tuple[int, ...],
        sizes: dict[str, Any],
    ) -> None:
        pointers, together = [tensor.data_ptr() for tensor in tensors], 0
        for pointer in pointers:
            together |= pointer
        usual = not together % ALIGNED and max(numbers) < 2**31
        constants = tuple(sizes.values())
        key = (device.index, constants, *[tensor.dtype for tensor in tensors])
        if usual and (compiled := self._compiled.get(key)) is not None:
            # addresses as numbers: of a tensor Triton would ask the driver where it lies
            compiled[grid](*pointers, *numbers, *constants)
            return
        compiled = self.kernel[grid](*tensors, *numbers, **sizes)
        if usual:
            self._compiled[key] = compiled
