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
# {rank: most bytes of shared memory that a kernel's block takes up to it}, as compiled for compute capability 8 and 9
ROOM = {64: 56 * 1024, 128: 80 * 1024, MOST_RANK: 176 * 1024}
SMALLEST = 64 * 1024  # bytes that a block has on any card that Triton takes
_cards: dict[torch.device, tuple[int, int]] = {}
_said: set[str] = set()


def takes(z: Tensor, rank: int) -> bool:
    """True if the gate's kernels can compute with rank coordinates of z's dtype and device; called in compiled graphs too."""
    if rank > MOST_RANK or z.dtype not in DTYPES:
        return False
    if z.device.type == "cpu":
        return INTERPRETED
    if z.device.type != "cuda":
        return False
    major, most_rank = _card(z.device)
    old = torch.version.hip is None and major < OLDEST_CARD[z.dtype]
    if HAS_TRITON and not old and rank <= most_rank:
        return True
    if not torch.compiler.is_compiling():
        few = f"a block of the card has too little memory for ranks above {most_rank}"
        _say("Triton is not installed" if not HAS_TRITON else "the card is too old for Triton" if old else few)
    return False


def _card(device: torch.device) -> tuple[int, int]:
    """(first number of the compute capability, largest rank); asked once per card, as it takes longer than a kernel."""
    if device not in _cards:
        card = torch.cuda.get_device_properties(device)
        room = getattr(card, "shared_memory_per_block_optin", SMALLEST)  # builds for AMD's cards may not say
        _cards[device] = card.major, max((rank for rank, needed in ROOM.items() if needed <= room), default=0)
    return _cards[device]


def _say(reason: str) -> None:
    """Once per process."""
    if reason not in _said:
        _said.add(reason)
        warnings.warn(f"FouRA's gates run without their kernels, which is slower: {reason}.", stacklevel=3)
