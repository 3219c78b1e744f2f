"""The PEFT layer: a frozen nn.Linear plus any number of named FouRA adapters.

Weights live in the transform domain: `foura_A` (r, in_features) and `foura_B` (out_features, r); real views with a last
axis of 2 for the DFT. Everything that computes is in `delta`, `transforms` and `gate`; this file is bookkeeping.
"""

import math
import warnings
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from foura.adapter.config import FouraConfig
from foura.adapter.delta import delta_weight, fold, low_rank_delta
from foura.adapter.gate import RankGate
from foura.adapter.transforms import coefficient_shape


class FouraLayer(nn.Module, BaseTunerLayer):
    """A linear layer with FouRA adapters, keyed by adapter name like every PEFT layer."""

    adapter_layer_names = ("foura_A", "foura_B", "foura_gate")
    other_param_names = (
        "foura_gate_mask",
        "foura_dropout",
        "r",
        "foura_alpha",
        "scaling",
        "transform",
        "transform_seed",
        "splits",
    )

    in_features: int
    out_features: int

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: FouraConfig, r: int, alpha: float, splits: int
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        linear: Any = self.get_base_layer()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.foura_A = nn.ParameterDict()
        self.foura_B = nn.ParameterDict()
        self.foura_gate = nn.ModuleDict()
        self.foura_gate_mask = BufferDict(persistent=True)
        self.foura_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.foura_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.transform: dict[str, str] = {}
        self.transform_seed: dict[str, int] = {}
        self.splits: dict[str, int] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, r, alpha, splits)

    def update_layer(self, adapter_name: str, config: FouraConfig, r: int, alpha: float, splits: int) -> None:
        """Add the adapter `adapter_name` of rank r to this layer."""
        if r <= 0:
            raise ValueError(f"r must be a positive integer, got {r}")
        a_shape = coefficient_shape(config.transform, self.in_features)
        b_shape = coefficient_shape(config.transform, self.out_features, splits)
        self.r[adapter_name] = r
        self.foura_alpha[adapter_name] = alpha
        self.scaling[adapter_name] = alpha / math.sqrt(r) if config.use_rslora else alpha / r
        self.transform[adapter_name] = config.transform
        self.transform_seed[adapter_name] = config.transform_seed
        self.splits[adapter_name] = splits
        self.foura_dropout[adapter_name] = nn.Dropout(config.foura_dropout) if config.foura_dropout else nn.Identity()
        self.foura_A[adapter_name] = nn.Parameter(torch.empty(r, *a_shape))
        self.foura_B[adapter_name] = nn.Parameter(torch.empty(b_shape[0], r, *b_shape[1:]))
        if config.gate == "adaptive":
            self.foura_gate[adapter_name] = RankGate(r, config.gate_scope)
        elif config.gate == "frozen":
            self.foura_gate_mask[adapter_name] = torch.ones(r, dtype=torch.bool)
        self.reset_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str, init_weights: bool = True) -> None:
        """LoRA's start: A uniform with variance 1/(3·in_features), B = 0 (random too where init_weights is False)."""
        bound = 1.0 / math.sqrt(self.in_features)
        self.foura_A[adapter_name].uniform_(-bound, bound)
        if init_weights:
            self.foura_B[adapter_name].zero_()
        else:
            self.foura_B[adapter_name].normal_(std=1.0 / math.sqrt(self.r[adapter_name]))

    def folded(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """(down (q, in), up (out, q)) of the adapter, before scaling; see `delta.fold`."""
        return fold(
            self.foura_A[adapter_name],
            self.foura_B[adapter_name],
            self.transform[adapter_name],
            self.in_features,
            self.out_features,
            self.splits[adapter_name],
            self.transform_seed[adapter_name],
        )

    def get_delta_weight(self, adapter_name: str, gate: Tensor | None = None) -> Tensor:
        """ΔW (out_features, in_features) of the adapter, scaling included.

        Args:
            gate: a fixed gate vector (r,) to use for an adaptive adapter, such as its mean over data.

        Raises:
            ValueError: the adapter has an adaptive gate and no fixed gate was given; its ΔW depends on the input.
        """
        if gate is None and adapter_name in self.foura_gate:
            raise ValueError(
                f"adapter {adapter_name!r} has an adaptive gate: its update depends on the input and has no single "
                "weight to merge or export. Call foura.freeze_gates(model, batches) first."
            )
        if gate is None and adapter_name in self.foura_gate_mask:
            gate = self.foura_gate_mask[adapter_name]
        down, up = self.folded(adapter_name)
        delta = delta_weight(down, up, self.scaling[adapter_name], self.r[adapter_name], gate)
        return delta.to(self.foura_A[adapter_name].dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW of the adapters to the base weight (all active ones by default); `safe_merge` refuses NaN and Inf."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.foura_A]
        deltas = [self.get_delta_weight(name) for name in names]  # all of them before the weight is touched
        weight: Any = self.get_base_layer().weight
        for name, delta in zip(names, deltas, strict=True):
            merged = weight.data + delta.to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )  # PEFT's words
            weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take every merged ΔW out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight: Any = self.get_base_layer().weight
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.foura_A:
                weight.data = weight.data - self.get_delta_weight(name).to(weight.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W0 x + b + Σ over active adapters of eq. 5; x is (..., in_features)."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.foura_A:
                result = result + self._delta(name, x).to(dtype)
        return result

    def _delta(self, name: str, x: Tensor) -> Tensor:
        compute_dtype = self.foura_A[name].dtype
        x = self.foura_dropout[name](self._cast_input_dtype(x, compute_dtype))
        down, up = (factor.to(compute_dtype) for factor in self.folded(name))
        gate: nn.Module | None = self.foura_gate[name] if name in self.foura_gate else None  # noqa: SIM401  (no dict)
        if name in self.foura_gate_mask:
            mask = self.foura_gate_mask[name]
            up = up * mask.to(up.dtype).repeat(up.shape[-1] // self.r[name])
        return low_rank_delta(x, down, up, self.scaling[name], self.r[name], gate)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return adapter_name not in self.foura_gate

    def __repr__(self) -> str:
        return "foura." + super().__repr__()


class Linear(FouraLayer):
    """FouRA on nn.Linear."""
