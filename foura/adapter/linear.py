"""FouRA on linear layers: nn.Linear, transformers' Conv1D, and quantised linear layers by PEFT's backends."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from foura.adapter.delta import accumulated, adapted, fold, gated, plain_delta, transformed_delta
from foura.adapter.layer import Factors, FouraLayer

# Without gradients the folded factors are kept from call to call, but only calls of few tokens (decoding) use them;
# larger ones can afford to fold, and so refresh them.
FEW_TOKENS = 256


class Linear(FouraLayer):
    """y = W0 x + b + Σ eq. 5 over the active adapters; x is (..., in_features).

    One line of mathematics (`delta.plain_delta`), run in the cheapest way that the situation allows:
        torch.compile            the line itself; the compiler fuses it
        no gradients             folded factors, kept while A and B are unchanged
        fewer tokens than ranks  the activations are transformed, not the factors
        otherwise                `delta.adapted`: folded once, accumulated in place
    """

    def __init__(self, base_layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = self.names()
        if not names:
            return self.base_layer(x, *args, **kwargs)
        compute = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
        base: Any = partial(self.base_layer, *args, **kwargs) if args or kwargs else self.base_layer
        if torch.compiler.is_compiling() or not self._one_dtype(x, names, compute):
            return super()._forward(x, *args, **kwargs)
        x = x if compute is None else x.to(compute)
        inplace = self._owns_output()
        if not torch.is_grad_enabled():
            result = base(x)
            for name in names:
                down, up = self._kept_factors(name, x)
                z = nn.functional.linear(self.foura_dropout[name](x), down)
                u = gated(z, self.r[name], self.gate(name))
                result = accumulated(result, u, up, self.scaling[name], inplace)
            return result
        if x.shape[:-1].numel() < max(self.r[name] for name in names):
            return super()._forward(x, *args, **kwargs)
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
                inplace=inplace,
            )
        return base(x)

    def delta(self, adapter_name: str, x: Tensor) -> Tensor:
        A, B = self.foura_A[adapter_name], self.foura_B[adapter_name]
        x = self.foura_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        r, scaling, gate = self.r[adapter_name], self.scaling[adapter_name], self.gate(adapter_name)
        few = x.shape[:-1].numel() < r and A.dtype in (torch.float32, torch.float64)
        if few and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            with torch.autocast(x.device.type, enabled=False):
                mask = self.foura_gate_mask[adapter_name] if adapter_name in self.foura_gate_mask else None
                fixed = gate if mask is None else lambda _: mask
                return transformed_delta(x.to(A.dtype), A, B, self.transform[adapter_name], scaling, fixed)
        down, up = self._fresh_factors(adapter_name, A.dtype)
        return plain_delta(x, down, up, scaling, r, gate)

    def _fresh_factors(self, name: str, dtype: torch.dtype) -> Factors:
        down, up = (
            self.fold(name)
            if torch.compiler.is_compiling()
            else fold(self.foura_A[name], self.foura_B[name], self.transform[name])
        )
        return down.to(dtype), self.mask_up(name, up).to(dtype)

    def _kept_factors(self, name: str, x: Tensor) -> Factors:
        """The factors for a call without gradients, from the last such call if nothing has changed.

        A and B are recognised by address and by the counter that autograd keeps of in-place writes. Writes through
        `.data` escape it: `train()` and `eval()` drop what is kept.
        """
        A, B = self.foura_A[name], self.foura_B[name]
        if A.is_inference() or B.is_inference():  # these have no counter
            return self._fresh_factors(name, x.dtype)
        mask = self.foura_gate_mask[name] if name in self.foura_gate_mask else None
        key = (A.data_ptr(), A._version, B.data_ptr(), B._version, x.dtype, x.device, mask is None or mask._version)
        if x.shape[:-1].numel() <= FEW_TOKENS and name in self._cached and self._cached[name][0] == key:
            return self._cached[name][1]
        with torch.inference_mode(False), torch.no_grad():
            factors = self._fresh_factors(name, x.dtype)
        self._cached[name] = (key, factors)
        return factors

    def _one_dtype(self, x: Tensor, names: list[str], autocast: torch.dtype | None) -> bool:
        """Whether input, base output and adapters share a dtype, so that products can be accumulated."""
        weight = getattr(self.get_base_layer(), "weight", None)
        if weight is None or self.quantization_backend is not None or not weight.is_floating_point():
            return False
        if autocast is not None:
            return x.dtype in (torch.float32, autocast)
        return all(x.dtype == weight.dtype == self.foura_A[name].dtype for name in names)

    def _owns_output(self) -> bool:
        """Whether nobody else can hold the base layer's output or input gradient, which are then written to."""
        base: Any = self.base_layer
        return type(base) is nn.Linear and not (
            base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
        )

    def _dropout(self, name: str) -> nn.Module | None:
        dropout = self.foura_dropout[name]
        return dropout if self.training and isinstance(dropout, nn.Dropout) else None
