"""FouRA on linear layers: nn.Linear, transformers' Conv1D, and quantised linear layers by PEFT's backends."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from foura.adapter.delta import (
    accumulated,
    adapted,
    adapted_linear,
    fold,
    gated,
    plain_delta,
    transformed_delta,
)
from foura.adapter.layer import FouraLayer
from foura.adapter.merging import Factors
from foura.adapter.tracing import traced

# Without gradients the folded factors are cached, but only calls with few tokens (decoding) use the cache; larger ones
# can afford to fold, and so refresh it.
FEW_TOKENS = 256


class Linear(FouraLayer):
    """y = W0 x + b + Σ eq. 5 over the active adapters; x is (..., in_features).

    One line of mathematics (`delta.plain_delta`), computed in the cheapest way for the situation:
        torch.compile, export    the line itself; the compiler fuses it
        no gradients             folded factors, cached while A and B are unchanged
        fewer tokens than ranks  the activations are transformed, not the factors
        one adapter, no gate     `delta.adapted_linear`: one operation
        otherwise                `delta.adapted`: folded once, accumulated in place
    """

    def __init__(self, base_layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = self.names()
        device = x.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if traced() or not names or not self._one_dtype(x, names, compute):
            return super()._forward(x, *args, **kwargs)
        if compute is not None:
            x = x.to(compute)
        base: Any = partial(self.base_layer, *args, **kwargs) if args or kwargs else self.base_layer
        owns = self._owns_output()
        if not torch.is_grad_enabled():
            result = base(x)
            for name in names:
                down, up = self._kept_factors(name, x)
                dropout = self._dropout(name)
                z = nn.functional.linear(x if dropout is None else dropout(x), down)
                u = gated(z, self.r[name], self.gate(name))
                result = accumulated(result, u, up, self.scaling[name], owns)
            return result
        if x.shape[:-1].numel() < max(self.r[name] for name in names):
            return super()._forward(x, *args, **kwargs)
        if owns and len(names) == 1 and self._is_one_operation(names[0], x):
            name, linear = names[0], cast(nn.Linear, self.base_layer)
            return adapted_linear(
                x,
                linear.weight,
                linear.bias,
                self.foura_A[name],
                self.foura_B[name],
                self.transform[name],
                self.scaling[name],
                self._mask(name),
            )
        for name in names:
            down, up = self._fresh_factors(name, x.dtype)
            base = partial(
                adapted,
                base,
                down=down,
                up=up,
                scaling=self.scaling[name],
                rank=self.r[name],
                gate=self.gate(name),
                dropout=self._dropout(name),
                inplace=owns,
            )
        return base(x)

    def delta(self, adapter_name: str, x: Tensor) -> Tensor:
        A, B = self.foura_A[adapter_name], self.foura_B[adapter_name]
        x = self.foura_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        r, scaling, gate = self.r[adapter_name], self.scaling[adapter_name], self.gate(adapter_name)
        eager = torch.is_grad_enabled() and not traced()
        if eager and x.shape[:-1].numel() < r and A.dtype in (torch.float32, torch.float64):
            with torch.autocast(x.device.type, enabled=False):
                mask = self._mask(adapter_name)
                fixed = gate if mask is None else lambda _: mask
                return transformed_delta(x.to(A.dtype), A, B, self.transform[adapter_name], scaling, fixed)
        down, up = self._fresh_factors(adapter_name, A.dtype)
        return plain_delta(x, down, up, scaling, r, gate)

    def _fresh_factors(self, name: str, dtype: torch.dtype) -> Factors:
        down, up = self.fold(name) if traced() else fold(self.foura_A[name], self.foura_B[name], self.transform[name])
        return down.to(dtype), self.mask_up(name, up).to(dtype)

    def _kept_factors(self, name: str, x: Tensor) -> Factors:
        """The factors for a call without gradients, from the last such call if nothing has changed.

        Changes of A and B are seen by their address and by autograd's counter of in-place writes. Writes through `.data`
        are not counted: `train()` and `eval()` clear the cache.
        """
        A, B, mask = self.foura_A[name], self.foura_B[name], self._mask(name)
        if A.is_inference() or B.is_inference():  # inference tensors have no such counter
            return self._fresh_factors(name, x.dtype)
        key = (A.data_ptr(), A._version, B.data_ptr(), B._version, x.dtype, mask is None or mask._version)
        kept = self._cached.get(name)
        if kept is not None and kept[0] == key and x.numel() <= FEW_TOKENS * self.in_features:
            return kept[1]
        with torch.inference_mode(False), torch.no_grad():
            factors = self._fresh_factors(name, x.dtype)
        self._cached[name] = (key, factors)
        return factors

    def _mask(self, name: str) -> Tensor | None:
        return self.foura_gate_mask[name] if name in self.foura_gate_mask else None

    def _one_dtype(self, x: Tensor, names: list[str], autocast: torch.dtype | None) -> bool:
        """True if input, base output and adapters share a dtype, so that products can be accumulated in place."""
        if self.quantization_backend is not None or not isinstance(self.base_layer, (nn.Linear, Conv1D)):
            return False
        if autocast is not None:
            return x.dtype in (torch.float32, autocast)
        return x.dtype == self.base_layer.weight.dtype and all(self.foura_A[name].dtype == x.dtype for name in names)

    def _owns_output(self) -> bool:
        """True if no hook can hold the base layer's output or input gradient, so that both may be written to."""
        base: Any = self.base_layer
        return type(base) is nn.Linear and not (
            base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
        )

    def _is_one_operation(self, name: str, x: Tensor) -> bool:
        """True if `delta.adapted_linear` can compute the layer with this adapter."""
        weight: Any = self.base_layer.weight
        return (
            name not in self.foura_gate
            and self._dropout(name) is None
            and weight.dtype == x.dtype
            and not weight.requires_grad
        )

    def _dropout(self, name: str) -> nn.Module | None:
        dropout = self.foura_dropout[name]
        return dropout if self.training and isinstance(dropout, nn.Dropout) else None
