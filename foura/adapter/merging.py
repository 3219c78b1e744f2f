"""ΔW of an adapter as one matrix, and merging it into the base weight. Refused while a gate depends on the input."""

import warnings
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend
from torch import Tensor, nn

from foura.adapter.delta import masked

Factors = tuple[Tensor, Tensor]  # (down, up)


class MergingLayer(BaseTunerLayer):
    """The part of a FouRA layer that knows ΔW; `layer.FouraLayer` has the rest."""

    foura_A: nn.ParameterDict  # noqa: N815
    foura_gate: nn.ModuleDict
    foura_gate_mask: BufferDict
    r: dict[str, int]
    scaling: dict[str, float]
    fan_in_fan_out: bool
    quantization_backend: Any

    def fold(self, adapter_name: str) -> Factors:
        """(down (q, in), up (out, q)) of the adapter, before mask and scaling."""
        raise NotImplementedError

    def depends_on_input(self, adapter_name: str) -> bool:
        """True if the adapter's gate depends on the input, so that its update has no single ΔW."""
        return adapter_name in self.foura_gate

    def mask_up(self, adapter_name: str, up: Tensor) -> Tensor:
        """`up` with the columns that a frozen gate has closed set to zero."""
        if adapter_name not in self.foura_gate_mask:
            return up
        return masked(up, self.foura_gate_mask[adapter_name], self.r[adapter_name])

    def fixed_factors(self, adapter_name: str) -> Factors:
        """(down, up) with mask and scaling in up: ΔW = up · down.

        Raises:
            ValueError: the adapter's gate depends on the input, and so does its ΔW.
        """
        if self.depends_on_input(adapter_name):
            raise ValueError(
                f"adapter {adapter_name!r} has an adaptive gate: its update depends on the input and has no single "
                "weight to merge or export. Call foura.freeze_gates(model, batches) first."
            )
        down, up = self.fold(adapter_name)
        return down, self.mask_up(adapter_name, up) * self.scaling[adapter_name]

    def get_delta_weight(self, adapter_name: str, gate: Tensor | None = None) -> Tensor:
        """ΔW of the adapter in the shape of the base weight, scaling included.

        Args:
            gate: a fixed gate vector (r,) in place of one that depends on the input, such as its mean over data.

        Raises:
            ValueError: the adapter's gate depends on the input, and no fixed gate was given.
        """
        if gate is None:
            delta = self._weight_shaped(*self.fixed_factors(adapter_name))
        else:
            down, up = self.fold(adapter_name)
            delta = self.scaling[adapter_name] * self._weight_shaped(down, masked(up, gate, self.r[adapter_name]))
        return delta.to(self.foura_A[adapter_name].dtype)

    def _weight_shaped(self, down: Tensor, up: Tensor) -> Tensor:
        """up · down in the shape of the base weight."""
        delta = (up @ down.flatten(1)).view(-1, *down.shape[1:])
        return delta.T if self.fan_in_fan_out else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW of the adapters to the base weight (all active ones by default); `safe_merge` refuses NaN and Inf.

        Raises:
            ValueError: a gate that depends on the input, a base weight that is computed from others, or NaN and Inf.
        """
        self.check_weight_is_stored(adapter_names)
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.foura_A]
        deltas = [self.get_delta_weight(name) for name in names]  # all of them before the weight is touched
        for name, delta in zip(names, deltas, strict=True):
            weight = self.get_base_weight()
            merged = weight + delta.to(weight)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )  # PEFT's words
            self.set_base_weight(merged)
            self.merged_adapters.append(name)

    def check_weight_is_stored(self, adapter_names: list[str] | None) -> None:
        """A weight that is computed in every call (weight_norm, pruning) would not keep what is added to it.

        Raises:
            ValueError: it is, and there are adapters to merge.
        """
        base = self.get_base_layer()
        weight = getattr(base, "weight", None)
        stored = isinstance(weight, nn.Parameter) or "weight" in base._buffers or not isinstance(weight, Tensor)
        merges = not self.foura_A.keys().isdisjoint(adapter_names or self.active_adapters)
        if merges and not stored and self.quantization_backend is None:
            raise ValueError(
                f"the weight of this {type(base).__name__} is computed from other parameters in every call, "
                "so that nothing can be merged into it. Make it a weight first: parametrize.remove_parametrizations, "
                "remove_weight_norm or prune.remove of torch.nn.utils."
            )

    def unmerge(self) -> None:
        """Subtract every merged ΔW from the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.foura_A:
                weight = self.get_base_weight()
                self.set_base_weight(weight - self.get_delta_weight(name).to(weight))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return not self.depends_on_input(adapter_name)


def quantization_backend(layer: nn.Module, **settings: Any) -> Any:
    """PEFT's backend of a quantised layer, None for any other.

    A model that torchao's quantize_() has quantised by itself does not say how, so that its merged weights could not be
    quantised again: such a layer trains, and refuses to merge.
    """
    unknown = "get_apply_tensor_subclass" not in settings
    backend = resolve_quantization_backend(layer, **{"get_apply_tensor_subclass": _unsaid, **settings})
    if unknown and backend is not None and backend.backend_name == "torchao":
        return ForwardOnlyQuantizationBackend("torchao")
    return backend


def _unsaid() -> None:
    """In the place of torchao's settings; never called, because nothing is quantised again."""


def untie(model: nn.Module) -> list[str]:
    """Give every adapted layer whose weight another module holds too a weight of its own, so that merging changes it alone.

    A language model's output layer often shares its weight with the input embeddings; merged in place, the update would
    change both.

    Returns:
        names of the layers.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    untied = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            base: Any = module.get_base_layer()
            weight = getattr(base, "weight", None)
            if type(weight) is nn.Parameter and holders[id(weight)] > 1:
                base.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
                holders[id(weight)] -= 1
                untied.append(name)
    return untied
