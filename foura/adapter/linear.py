"""FouRA on linear layers: nn.Linear, transformers' Conv1D, and quantised linear layers by PEFT's backends."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from foura.adapter.delta import accumulated, adapted, adapted_linear, gated, plain_delta
from foura.adapter.fold import DOWN
from foura.adapter.keep import FoldingLayer
from foura.adapter.merging import Factors
from foura.adapter.tracing import selective, traced


class Linear(FoldingLayer):
    """y = W0 x + b + Σ eq. 5 over the active adapters; x is (..., in_features).

    One line of mathematics (`delta.plain_delta`) on folded factors (`keep`), computed in the cheapest way for the situation:
        torch.compile, export    the line itself; the compiler fuses it
        different dtypes         the same
        selective checkpointing  the same; it keeps results that must not be written to
        no gradients             accumulated in place
        one adapter              `delta.adapted_linear`: one operation, if its gate, if any, has a kernel
        otherwise                `delta.adapted`: accumulated in place
    """

    def __init__(self, base_layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = self.names()
        base: Any = self._modules["base_layer"]
        dtype = self._one_dtype(x, names, base)
        if dtype is None or not names or traced() or selective():
            return super()._forward(x, *args, **kwargs)
        if x.dtype is not dtype:
            x = x.to(dtype)
        owns = _owns_output(base)
        factors = [self.factors(name, dtype) for name in names]
        if not torch.is_grad_enabled():
            return self._accumulated(base(x, *args, **kwargs), x, names, factors, owns)
        if owns and len(names) == 1 and self.dropout(names[0]) is None:
            try:  # nn.Module's own look-up takes ten times as long
                weight, bias = base._parameters["weight"], base._parameters["bias"]
            except KeyError:  # attributes: in a replica of DataParallel, and where FSDP recomputes a block
                weight, bias = base.weight, base.bias
            gate = self.gate(names[0])
            call = None if gate is None else gate.kernel_call(x)
            if weight.dtype is dtype and not weight.requires_grad and (gate is None or call is not None):
                return adapted_linear(x, weight, bias, *factors[0], call)
        wrapped: Any = partial(base, *args, **kwargs) if args or kwargs else base
        for name, (down, up) in zip(names, factors, strict=True):
            gate, dropout = self.gate(name), self.dropout(name)
            wrapped = partial(
                adapted, wrapped, down=down, up=up, rank=self.r[name], gate=gate, dropout=dropout, inplace=owns
            )
        return wrapped(x)

    def _accumulated(self, out: Tensor, x: Tensor, names: list[str], factors: list[Factors], inplace: bool) -> Tensor:
        """out + the adapters' contributions, without gradients."""
        for name, (down, up) in zip(names, factors, strict=True):
            dropout = self.dropout(name)
            z = nn.functional.linear(x if dropout is None else dropout(x), down)
            out = accumulated(out, gated(z, self.r[name], self.gate(name)), up, inplace)
        return out

    def delta(self, adapter_name: str, x: Tensor) -> Tensor:
        dtype = self.foura_A[adapter_name].dtype
        if traced():
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
            down, up = self.traced_factors(adapter_name, dtype)
        else:
            down, up = self.factors(adapter_name, dtype)
        x = self.foura_dropout[adapter_name](self._cast_input_dtype(x, dtype))
        return plain_delta(x, down, up, self.r[adapter_name], self.gate(adapter_name))

    def _one_dtype(self, x: Tensor, names: list[str], base: Any) -> torch.dtype | None:
        """What the layer computes in if input, base output and adapters share a dtype, so that products can be accumulated."""
        if self.quantization_backend is not None or not isinstance(base, (nn.Linear, Conv1D)):
            return None
        dtype, device = x.dtype, x.device.type
        if torch.is_autocast_enabled(device):
            compute = torch.get_autocast_dtype(device)
            return compute if dtype is compute or dtype is torch.float32 else None
        if dtype is not base.weight.dtype:
            return None
        for name in names:
            A = self.source(name, DOWN)
            if dtype is not (self.foura_A[name] if A is None else A).dtype:
                return None
        return dtype


def _owns_output(base: Any) -> bool:
    """True if no hook or patched forward can hold the base layer's output or input gradient, so that both may be written to."""
    return (
        type(base) is nn.Linear
        and "forward" not in vars(base)
        and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks)
    )
