"""The real tokens of a padding mask, made once for all gates that a call hands it to: several small kernels a layer else."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from foura.adapter.tracing import traced

_made: Any = WeakTensorKeyDictionary()  # {mask: (autograd's counter of writes to it, its real tokens)}


def real_tokens(mask: Tensor) -> Tensor:
    """(S, T), contiguous, true for real tokens, of a boolean mask; a sample of padding alone is left as it is."""
    # a graph runs again with another mask in the same place
    captured = mask.is_cuda and torch.cuda.is_current_stream_capturing()
    if traced() or captured or mask.is_inference():
        return _real(mask)
    made = _made.get(mask)
    if made is None or made[0] != mask._version:
        made = _made[mask] = mask._version, _real(mask)
    return made[1]


def _real(mask: Tensor) -> Tensor:
    return (mask | ~mask.any(1, keepdim=True)).contiguous()
