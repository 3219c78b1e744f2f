"""Is the model being turned into a graph? The graph holds the plain equation, without Python's reading of a shape."""

import torch


def traced() -> bool:
    """True under torch.compile, torch.export, torch.onnx.export and torch.jit.trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def exported() -> bool:
    """True where the graph is meant for another program: all of `traced` but torch.compile."""
    # not torch.compiler.is_exporting(): torch 2.11 answers yes under torch.compile, too
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()
