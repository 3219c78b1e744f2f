"""FouRA on linear layers: nn.Linear, transformers' Conv1D, and quantised linear layers by PEFT's backends."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from foura.adapter.delta import accumulated, adapted, adapted_linear, gated, plain_delta
from foura.adapter.keep import FoldingLayer
from foura.adapter.merging import Factors
from foura.adapter.tracing import traced


class Linear(FoldingLayer):
    """y = W0 x + b + Σ eq. 5 over the active adapters; x is (..., in_features).

    One line of mathematics (`delta.plain_delta`) on folded factors (`keep`), computed in the cheapest way for the situation:
        torch.compile, export    the line itself; the compiler fuses it
        different dtypes         the same
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
        device = x.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if traced() or not names or not self._one_dtype(x, names, base, compute):
            return super()._forward(x, *args, **kwargs)
        if compute is not None:
            x = x.to(compute)
        owns = _owns_output(base)
        factors = [self.factors(name, x.dtype) for name in names]
        if not torch.is_grad_enabled():
            return self._accumulated(base(x, *args, **kwargs), x, names, factors, owns)
        if owns and len(names) == 1 and self._is_one_operation(names[0], x, base):
            gate = self.gate(names[0])
            call = None if gate is None else gate.kernel_call(x)
            if gate is None or call is not None:
                return adapted_linear(x, base.weight, base.bias, *factors[0], call)
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

    def _one_dtype(self, x: Tensor, names: list[str], base: Any, autocast: torch.dtype | None) -> bool:
        """True if input, base output and adapters share a dtype, so that products can be accumulated in place."""
        if self.quantization_backend is not None or not isinstance(base, (nn.Linear, Conv1D)):
            return False
        if autocast is not None:
            return x.dtype in (torch.float32, autocast)
        return x.dtype == base.weight.dtype and all(self.foura_A[name].dtype == x.dtype for name in names)

    def _is_one_operation(self, name: str, x: Tensor, base: Any) -> bool:
        """True if `delta.adapted_linear` can compute the layer with this adapter."""
        weight = base.weight
        return weight.dtype == x.dtype and not weight.requires_grad and self.dropout(name) is None


def _owns_output(base: Any) -> bool:
    """True if no hook can hold the base layer's output or input gradient, so that both may be written to."""
    return type(base) is nn.Linear and not (
        base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
    )
