"""torch's fast path through nn.TransformerEncoder, which reads the weights of its layers and calls none of them.

In evaluation without gradients it would pass every adapter by without a word. So an encoder layer that has adapters gets a
hook that does nothing: layers with hooks are called. The encoder around it must not pass nested tensors either, which
only the fast path takes.
"""

from functools import partial
from typing import Any

from torch import nn

from foura.adapter.layer import FouraLayer


def avoid_fast_path(model: nn.Module) -> None:
    """See to it that the encoder layers of `model` call the layers that have adapters."""
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)) and _is_adapted(module):
            if any(map(_is_ours, module._forward_pre_hooks.values())):
                continue
            nested = getattr(module, "use_nested_tensor", None)
            module.register_forward_pre_hook(partial(_called_in_full, nested=nested))
            if nested is not None:
                module.use_nested_tensor = False


def allow_fast_path(model: nn.Module) -> None:
    """Undo `avoid_fast_path`."""
    for module in model.modules():
        hooks: dict[int, Any] = module._forward_pre_hooks
        for number, hook in list(hooks.items()):
            if _is_ours(hook):
                del hooks[number]
                if (nested := hook.keywords["nested"]) is not None:
                    module.use_nested_tensor = nested


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, partial) and hook.func is _called_in_full


def _is_adapted(module: nn.Module) -> bool:
    return any(isinstance(part, FouraLayer) for part in module.modules())


def _called_in_full(_module: nn.Module, _args: Any, nested: bool | None) -> None:
    """`nested` is what the encoder's `use_nested_tensor` was."""
