"""Operators that a compiled graph calls without looking into them.

`torch.library.custom_op` does the same, and in every call checks that no output shares memory with an input: that takes longer
than the launch of a small kernel. An operator registered here has to see to it itself.
"""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("foura", "FRAGMENT")


def operator(function: Callable[..., Any]) -> Any:
    """Register `function`, whose arguments and results have types, as torch.ops.foura.<its name>; returns the operator.

    Its results share memory with none of its arguments, and it writes to none.
    """
    name = function.__name__
    _library.define(name + torch.library.infer_schema(function, mutates_args=()))
    _library.impl(name, function, "CompositeExplicitAutograd")
    return getattr(torch.ops.foura, name).default
