"""Which tokens are padding: from the arguments of a model's call to the gates of its layers."""

import inspect
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from foura.adapter.gate import Gate

MASKS = ("attention_mask", "decoder_attention_mask")
# the layers of a decoder whose input is the encoder's output, under the names that transformers' models give them
CROSS = re.compile(r"(encoder_attn|cross_?att\w*|EncDecAttention)(\.\w+)*\.(k|v|key|value)(_proj)?\.foura_gate\.")
_own = threading.local()  # .masks: {gate: mask} of the contexts that a thread is in


@contextmanager
def attention_mask(model: nn.Module, mask: Tensor | None) -> Iterator[None]:
    """Within the context, the gates of `model` ignore padding: mask (S, T), true or 1 for real tokens.

    A PeftModel does this itself with the `attention_mask` that it is called with; this is for models that have FouRA
    adapters without the wrapper (`model.add_adapter`). Layers whose input has another number of tokens are not affected.
    """
    mask = None if mask is None else mask.bool()
    with _masked(model, [(module, mask) for module in model.modules() if isinstance(module, Gate)]):
        yield


def mask_positions(model: nn.Module) -> dict[str, int]:
    """{name: position} of the arguments of `model.forward` that say what is padding."""
    return {name: at for at, name in enumerate(inspect.signature(model.forward).parameters) if name in MASKS}


def masks_of_call(
    model: nn.Module, positions: Mapping[str, int], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> AbstractContextManager[None]:
    """`attention_mask` with what a call of `model` says itself: masks (S, T), by name or at `mask_positions`.

    In an encoder-decoder model the encoder's gates get `attention_mask`, as do those of the decoder's keys and values
    that are made of the encoder's output; all others in it get `decoder_attention_mask`. A call without masks leaves those
    of an outer context.
    """
    given: dict[str, Tensor] = {}
    for name in MASKS:
        at = positions.get(name, len(args))
        mask = args[at] if at < len(args) else kwargs.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            given[name] = mask.bool()
    if not given:
        # a compiled gate cannot tell a new call from a recomputation
        compiling = torch.compiler.is_compiling()
        new = compiling or (Gate.masks_were_kept and torch._C._current_graph_task_id() == -1)
        if model.training and new:
            for module in model.modules():
                if isinstance(module, Gate) and module.kept_mask is not None:
                    module.kept_mask = None
        return nullcontext()
    source, target = (given.get(name) for name in MASKS)
    if target is None and kwargs.get("decoder_input_ids") is None and not getattr(model, "can_generate", bool)():
        target = source  # models that classify feed their decoder with the same tokens
    gates = [(name, module) for name, module in model.named_modules() if isinstance(module, Gate)]
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return _masked(model, [(gate, source) for _, gate in gates])
    encoder: Any = getattr(model, "get_encoder", nn.Module)()
    encoding = set(encoder.modules())
    return _masked(
        model, [(gate, source if gate in encoding or CROSS.search(name) else target) for name, gate in gates]
    )


@contextmanager
def _masked(model: nn.Module, masks: list[tuple[Gate, Tensor | None]]) -> Iterator[None]:
    compiling = torch.compiler.is_compiling()
    # what this thread has set, and not what another one has just now: that would stay when both have ended
    outer: dict[Gate, Tensor | None] = {} if compiling else getattr(_own, "masks", {})
    before = [(gate, gate.padding_mask if compiling else outer.get(gate)) for gate, _ in masks]
    if not compiling:
        _own.masks = {**outer, **dict(masks)}
    for gate, mask in masks:
        gate.padding_mask = mask
        if gate.kept_mask is not None:
            gate.kept_mask = None
    try:
        yield
    finally:
        if not compiling:
            _own.masks = outer
        for gate, previous in before:
            gate.padding_mask = previous
    if torch.is_grad_enabled() and model.training:
        if not compiling:
            Gate.masks_were_kept = True
        for gate, mask in masks:
            gate.kept_mask = mask
