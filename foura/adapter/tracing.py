"""Is the model being turned into a graph? The graph holds the plain equation, without Python's reading of a shape."""

import torch
from torch.utils import checkpoint
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

SELECTIVE = (checkpoint._CachingTorchDispatchMode, checkpoint._CachedTorchDispatchMode)


def traced() -> bool:
    """True under torch.compile, torch.export, torch.onnx.export and torch.jit.trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def exported() -> bool:
    """True where the graph is meant for another program: all of `traced` but torch.compile."""
    # not torch.compiler.is_exporting(): torch 2.11 answers yes under torch.compile, too
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()


def selective() -> bool:
    """True in a block under selective checkpointing, which keeps results of some operations for the recomputation.

    Nothing may then be accumulated onto such a result, and both runs of the block have to be the same operations.
    """
    if not torch._C._len_torch_dispatch_stack():  # nearly always
        return False
    return any(isinstance(mode, SELECTIVE) for mode in _get_current_dispatch_mode_stack())
