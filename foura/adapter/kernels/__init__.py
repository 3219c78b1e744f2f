"""Triton kernels: which tensors they take.

A kernel is a page: its equation, the kernel, the name of its twin in eager PyTorch. Everything else runs the twin: no Triton,
the CPU, an old card, float64, large ranks. With TRITON_INTERPRET=1 kernels run on the CPU, for tests.
"""

import importlib.util
import os
import warnings

import torch
from torch import Tensor

MOST_RANK = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
# by compute capability: with half precision, and with bfloat16; AMD's cards number theirs otherwise, and all do
OLDEST_CARD = {torch.float32: 7, torch.float16: 7, torch.bfloat16: 8}
_majors: dict[torch.device, int] = {}
_said: set[str] = set()


def takes(z: Tensor, rank: int) -> bool:
    """True if the gate's kernels can compute with rank coordinates of z's dtype and device; called in compiled graphs too."""
    if rank > MOST_RANK or z.dtype not in DTYPES:
        return False
    if z.device.type == "cpu":
        return INTERPRETED
    if z.device.type != "cuda":
        return False
    old = torch.version.hip is None and _major(z.device) < OLDEST_CARD[z.dtype]
    if HAS_TRITON and not old:
        return True
    if not torch.compiler.is_compiling():
        _say("the card is too old for Triton" if HAS_TRITON else "Triton is not installed")
    return False


def _major(device: torch.device) -> int:
    """The first number of the card's compute capability; asked once, as it takes longer than a kernel."""
    if device not in _majors:
        _majors[device] = torch.cuda.get_device_properties(device).major
    return _majors[device]


def _say(reason: str) -> None:
    """Once per process."""
    if reason not in _said:
        _said.add(reason)
        warnings.warn(f"FouRA's gates run without their kernels, which is slower: {reason}.", stacklevel=3)
