"""FouRA on nn.Conv1d/2d/3d: the transform acts on the channels, the same for every tap of the kernel.

z = A ∗ (F x), y = F⁻¹ B z, with A a kernel (r, in_channels, *kernel) and B a 1x1 kernel, as in PEFT's LoRA.
"""

from typing import Any

import torch
from torch import Tensor, nn

from foura.adapter.config import FouraConfig
from foura.adapter.delta import gated
from foura.adapter.fold import DOWN, UP
from foura.adapter.layer import FouraLayer
from foura.adapter.merging import Factors
from foura.adapter.transforms import Transform

CONVOLUTIONS = {
    nn.Conv1d: torch.nn.functional.conv1d,
    nn.Conv2d: torch.nn.functional.conv2d,
    nn.Conv3d: torch.nn.functional.conv3d,
}
BY_AXES = dict(enumerate(CONVOLUTIONS.values(), start=1))  # of the kernel


class Conv(FouraLayer):
    """FouRA on a convolution; x is (S, in_channels, ...), stride, padding and dilation are the base layer's.

    Subclasses are adapted if they compute as torch's class does, such as those of weight_norm.

    Raises:
        ValueError: more than one group; a transform over all channels would mix the groups. A class with a forward of its
            own, which may pad otherwise or standardise its weight: the delta would be that of another layer.
    """

    def _transform(self, config: FouraConfig, splits: int) -> Transform:
        kind = type(self._base())
        ours = next(one for one in kind.__mro__ if one in CONVOLUTIONS)
        if kind.forward is not ours.forward or kind._conv_forward is not ours._conv_forward:
            raise ValueError(
                f"FouRA adapts convolutions that compute as torch's {ours.__name__} does; {kind.__name__} has a forward of its "
                "own, which may pad its input otherwise or scale its weight. List it in exclude_modules."
            )
        if self._base().groups > 1:
            raise ValueError(
                f"FouRA adapts convolutions with groups=1, this one has {self._base().groups}; list it in exclude_modules."
            )
        return super()._transform(config, splits)

    def _base(self) -> Any:
        return self.get_base_layer()

    def _shape_A(self, transform: Transform, r: int) -> tuple[int, ...]:
        rank, channels, *parts = transform.shape_A(r)
        return (rank, channels, *self._base().kernel_size, *parts)

    def get_fan_in(self) -> int:
        return self.in_features * self._base().weight[0, 0].numel()

    def fold(self, adapter_name: str) -> Factors:
        """(down (q, in_channels, *kernel), up (out_channels, q))."""
        A = self.foura_A[adapter_name]
        kernel = self._base().kernel_size
        taps_last = A.movedim(1, 1 + len(kernel))  # (r, *kernel, channels[, 2])
        rows = taps_last.flatten(0, len(kernel))
        down = self._fold_side(adapter_name, rows, DOWN).unflatten(0, (-1, *kernel)).movedim(-1, 1)
        return down, self._fold_side(adapter_name, self.foura_B[adapter_name], UP)

    def delta(self, adapter_name: str, x: Tensor) -> Tensor:
        base = self._base()
        dtype = self.foura_A[adapter_name].dtype
        x = self.foura_dropout[adapter_name](self._cast_input_dtype(x, dtype))
        down, up = self.fold(adapter_name)
        z = base._conv_forward(x, down.to(dtype), None)
        if (gate := self.gate(adapter_name)) is not None:
            z = gated(z.movedim(1, -1), self.r[adapter_name], gate).movedim(-1, 1)
        up = self.mask_up(adapter_name, up).to(dtype)
        axes = len(base.kernel_size)
        return BY_AXES[axes](z, up[(...,) + (None,) * axes]) * self.scaling[adapter_name]
