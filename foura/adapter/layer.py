"""The PEFT layer: a frozen layer plus any number of named FouRA adapters. Base class of every kind of layer.

Weights live in the transform domain: `foura_A` (r, in_features) and `foura_B` (out_features, r); real views with a last
axis of 2 for the DFT. The mathematics is in `delta`, `transforms` and `gates`, merging in `merging`; this file is
bookkeeping.
"""

import math
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils import quantization_extra_repr
from torch import Tensor, nn

from foura.adapter import graph
from foura.adapter.config import FouraConfig
from foura.adapter.delta import plain_fold
from foura.adapter.fold import DOWN, UP, check_present
from foura.adapter.gate import Gate
from foura.adapter.gates import GATES
from foura.adapter.merging import Factors, MergingLayer, quantization_backend
from foura.adapter.tracing import exported
from foura.adapter.transforms import TRANSFORMS, Transform

MOST_RANK = 4096  # allowed in every layer, however small


class FouraLayer(nn.Module, MergingLayer):
    """A layer with FouRA adapters, keyed by adapter name like every PEFT layer."""

    adapter_layer_names = ("foura_A", "foura_B", "foura_gate")
    other_param_names: tuple[str, ...] = (
        "foura_gate_mask",
        "foura_dropout",
        "r",
        "foura_alpha",
        "scaling",
        "use_rslora",
        "transform",
        "transform_name",
    )

    in_features: int
    out_features: int

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: FouraConfig,
        r: int,
        alpha: float,
        splits: int,
        **quantization: Any,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        assert in_features is not None and out_features is not None
        self.in_features, self.out_features = in_features, out_features
        self.quantization_backend = quantization_backend(self.get_base_layer(), **quantization)
        self.fan_in_fan_out = False  # true if the base weight is stored as (in, out)
        self.foura_A = nn.ParameterDict()
        self.foura_B = nn.ParameterDict()
        self.foura_gate = nn.ModuleDict()
        self.foura_gate_mask = BufferDict(persistent=True)
        self.foura_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.foura_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.use_rslora: dict[str, bool] = {}
        self.transform: dict[str, Transform] = {}
        self.transform_name: dict[str, str] = {}  # as the operator of compiled graphs knows it
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, r, alpha, splits)

    # -- adapters

    def update_layer(self, adapter_name: str, config: FouraConfig, r: int, alpha: float, splits: int) -> None:
        """Add the adapter `adapter_name` of rank r to this layer.

        Raises:
            ValueError: a rank that is not positive or far above the layer's size, or `splits` that do not divide it.
        """
        if r <= 0:
            raise ValueError(f"r must be a positive integer, got {r}")
        if r > max(MOST_RANK, self.in_features, self.out_features):  # a damaged config would fill the memory
            raise ValueError(f"r={r} is far more than a layer of {self.in_features} -> {self.out_features} can hold")
        self.transform[adapter_name] = self._transform(config, splits)
        self.transform_name[adapter_name] = graph.named(self.transform[adapter_name])
        self.r[adapter_name] = r
        self.foura_alpha[adapter_name] = alpha
        self.use_rslora[adapter_name] = config.use_rslora
        self.set_scale(adapter_name, 1.0)
        self.foura_dropout[adapter_name] = nn.Dropout(config.foura_dropout) if config.foura_dropout else nn.Identity()
        self.foura_A[adapter_name] = nn.Parameter(torch.empty(self._shape_A(self.transform[adapter_name], r)))
        self.foura_B[adapter_name] = nn.Parameter(torch.empty(self.transform[adapter_name].shape_B(r)))
        gate = GATES[config.gate].make(r, config)
        if isinstance(gate, Gate):
            self.foura_gate[adapter_name] = gate.train(not config.inference_mode)
        elif gate is not None:
            self.foura_gate_mask[adapter_name] = gate
        self.reset_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _transform(self, config: FouraConfig, splits: int) -> Transform:
        return TRANSFORMS[config.transform](self.in_features, self.out_features, splits, config.transform_seed)

    def _shape_A(self, transform: Transform, r: int) -> tuple[int, ...]:
        return transform.shape_A(r)

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str, init_weights: bool = True) -> None:
        """LoRA's start: A uniform with variance 1/(3·fan-in), B = 0; B likewise where init_weights is False."""
        bound = 1.0 / math.sqrt(self.get_fan_in())
        self.foura_A[adapter_name].uniform_(-bound, bound)
        if init_weights:
            self.foura_B[adapter_name].zero_()
        else:
            bound = 1.0 / math.sqrt(self.transform[adapter_name].parts * self.r[adapter_name])
            self.foura_B[adapter_name].uniform_(-bound, bound)

    def get_fan_in(self) -> int:
        return self.in_features

    def names(self) -> list[str]:
        """The active adapters that this layer has."""
        return [name for name in self.active_adapters if name in self.r]

    # -- strength (diffusers calls these)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the adapter's scaling to `scale` times alpha / r (alpha / sqrt(r) with use_rslora)."""
        if adapter in self.r:
            r = self.r[adapter]
            self.scaling[adapter] = (
                scale * self.foura_alpha[adapter] / (math.sqrt(r) if self.use_rslora[adapter] else r)
            )

    def scale_layer(self, scale: float) -> None:
        """Multiply the scaling of the active adapters."""
        for name in self.names():
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scaling of the active adapters by `scale`; without one, reset it to alpha / r."""
        for name in self.names():
            if scale is None:
                self.set_scale(name, 1.0)
            else:
                self.scaling[name] /= scale

    # -- factors and gate

    def fold(self, adapter_name: str) -> Factors:
        """(down (q, in), up (out, q)) of the adapter in float32 or better, before mask and scaling; see `delta`."""
        A, B = self.foura_A[adapter_name], self.foura_B[adapter_name]
        return self._fold_side(adapter_name, A, DOWN), self._fold_side(adapter_name, B, UP)

    def _fold_side(self, adapter_name: str, source: Tensor, side: str) -> Tensor:
        """One side of `fold`: down (q, in) of rows of features, or up (out, q) of a B."""
        if not torch.compiler.is_compiling() or exported():
            check_present(source, self.foura_A if side == DOWN else self.foura_B)
            transform = self.transform[adapter_name]
            return plain_fold(transform.fold_down if side == DOWN else transform.fold_up, source)
        dtype = torch.promote_types(source.dtype, torch.float32)
        (rows,) = graph.fold([source], side, self.transform_name[adapter_name], [1.0], dtype)
        return rows if side == DOWN else rows.T

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for transform in self.transform.values():  # in another process
            graph.named(transform)

    # these are asked in every call; nn.Module's own look-up takes ten times as long

    def gate(self, adapter_name: str) -> Gate | None:
        """The adapter's input-dependent gate, if it has one."""
        gates: Any = self._modules["foura_gate"]
        return gates._modules.get(adapter_name)

    def mask(self, adapter_name: str) -> Tensor | None:
        """The mask of a frozen gate (r,), if the adapter has one."""
        masks: Any = self._modules["foura_gate_mask"]
        return masks._buffers.get(adapter_name)

    def dropout(self, adapter_name: str) -> nn.Module | None:
        """The adapter's dropout, while training with one."""
        dropouts: Any = self._modules["foura_dropout"]
        dropout = dropouts._modules[adapter_name]
        return dropout if self.training and isinstance(dropout, nn.Dropout) else None

    # -- forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the sum of eq. 5 over the active adapters."""
        adapter_names = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch(x, adapter_names, *args, **kwargs)
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        return self._forward(x, *args, **kwargs)

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        dtype = result.dtype
        for name in self.names():
            result = result + self.delta(name, x)
        return result.to(dtype)

    def delta(self, adapter_name: str, x: Tensor) -> Tensor:
        """The adapter's contribution to the layer's output for the input x, in the output's shape."""
        raise NotImplementedError(f"{type(self).__name__} computes its output as a whole")

    def _mixed_batch(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Row i of the batch goes through the adapter `adapter_names[i]`; "__base__" is the bare layer.

        Raises:
            ValueError: another number of names than rows, or merged adapters.
        """
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        result = self.base_layer(x, *args, **kwargs)
        for name in dict.fromkeys(adapter_names):
            if name in self.foura_A:
                rows = [i for i, other in enumerate(adapter_names) if other == name]
                result[rows] += self._mixed_delta(name, x, rows).to(result.dtype)
        return result

    def _mixed_delta(self, name: str, x: Tensor, rows: list[int]) -> Tensor:
        gate = self.gate(name)
        mask = None if gate is None else gate.padding_mask
        if gate is None or mask is None:
            return self.delta(name, x[rows])
        # in beam search every sample has several rows, one after the other
        beams, rest = divmod(len(x), len(mask)) if len(mask) else (0, 1)
        gate.padding_mask = None if rest or not beams else mask.repeat_interleave(beams, 0)[rows]
        try:
            return self.delta(name, x[rows])
        finally:
            gate.padding_mask = mask

    def __repr__(self) -> str:
        return "foura." + super().__repr__()

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)
