"""FouRA on nn.MultiheadAttention, which multiplies by its weights itself and calls no layer that could be wrapped.

As in PEFT's LoRA, the in-projection (q, k and v in one weight: three output blocks) and the out-projection are adapted
together: the attention is computed with W0 + ΔW.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from foura.adapter.config import FouraConfig
from foura.adapter.layer import FouraLayer
from foura.adapter.linear import Linear


class MultiheadAttention(FouraLayer):
    """FouRA on nn.MultiheadAttention with equal query, key and value widths; called like the layer that it wraps.

    Raises:
        ValueError: different widths, or a gate that depends on the input: there is no activation to gate, only ΔW.
        TypeError: mixed batches (`adapter_names`).
    """

    def __init__(self, base_layer: nn.MultiheadAttention, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if not base_layer._qkv_same_embed_dim:
            raise ValueError("FouRA adapts nn.MultiheadAttention only where query, key and value have the same width.")
        super().__init__(base_layer, adapter_name, *args, **kwargs)

    def update_layer(self, adapter_name: str, config: FouraConfig, r: int, alpha: float, splits: int) -> None:
        if config.gate_depends_on_input:
            raise ValueError(
                "nn.MultiheadAttention multiplies by its weights itself, so FouRA can only add ΔW to them, and "
                f"gate={config.gate!r} has none: use gate='none' or 'frozen', or list it in exclude_modules."
            )
        if config.foura_dropout:
            warnings.warn("foura_dropout has no effect on nn.MultiheadAttention.", stacklevel=2)
        super().update_layer(adapter_name, config, r, alpha, 3 if splits == 1 else splits)
        base: Any = self.base_layer
        if isinstance(base.out_proj, Linear):
            base.out_proj.update_layer(adapter_name, config, r, alpha, 1)
        else:
            base.out_proj = Linear(base.out_proj, adapter_name, config, r, alpha, 1)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        super()._move_adapter_to_device_of_base_layer(adapter_name, device or self._base().in_proj_weight.device)

    def _base(self) -> Any:
        return self.get_base_layer()

    def get_base_weight(self) -> Tensor:
        return self._base().in_proj_weight.data

    def set_base_weight(self, weight_data: Tensor) -> None:
        self._base().in_proj_weight.data = weight_data

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        super().merge(safe_merge, adapter_names)
        self._base().out_proj.merge(safe_merge, adapter_names)

    def unmerge(self) -> None:
        super().unmerge()
        self._base().out_proj.unmerge()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's hook for layers that have to be unwrapped in more than one place."""
        if merge:
            self.merge(safe_merge, adapter_names)
        base = self._base()
        base.out_proj = base.out_proj.get_base_layer()
        return base

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As nn.MultiheadAttention's, whose callers often name `query`, too."""
        return super().forward(query, *args, **kwargs)

    def _forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """nn.MultiheadAttention.forward with W0 + ΔW in place of its two weights."""
        base = self._base()
        in_proj, out_proj = base.in_proj_weight, base.out_proj.weight
        for name in self.names():
            in_proj = in_proj + self.get_delta_weight(name).to(in_proj.dtype)
            out_proj = out_proj + base.out_proj.get_delta_weight(name).to(out_proj.dtype)
        swap = base.batch_first and query.dim() == 3
        if swap:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        output, weights = torch.nn.functional.multi_head_attention_forward(
            query,
            key,
            value,
            base.embed_dim,
            base.num_heads,
            in_proj,
            base.in_proj_bias,
            base.bias_k,
            base.bias_v,
            base.add_zero_attn,
            base.dropout,
            out_proj,
            base.out_proj.bias,
            training=base.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return (output.transpose(0, 1) if swap else output), weights

    def _mixed_batch(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        raise TypeError("foura.MultiheadAttention does not support mixed adapter batches.")

    def __getattr__(self, name: str) -> Any:
        """Attributes that callers read of an nn.MultiheadAttention (embed_dim, batch_first, in_proj_weight, ...)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)
