"""Is the model being turned into a graph? The graph holds the plain equation, without Python's reading of a shape."""

import torch


def traced() -> bool:
    """True under torch.compile, torch.export, torch.onnx.export and torch.jit.trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def exported() -> bool:
    """True where the graph is meant for another program: all of `traced` but torch.compile."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()
