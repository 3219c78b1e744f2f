"""The PEFT tuner: wraps the layers that a FouraConfig names, and passes adapters and padding masks to them per call."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    get_quantization_kwargs,
)
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from foura.adapter.attention import MultiheadAttention
from foura.adapter.combine import combine_layer, combine_saved, combined_config
from foura.adapter.config import CAUSAL, LOOKS_AHEAD, FouraConfig, heeds_padding, looks_ahead
from foura.adapter.conv import CONVOLUTIONS, Conv
from foura.adapter.embedding import Embedding
from foura.adapter.fast_path import allow_fast_path, avoid_fast_path
from foura.adapter.keep import FoldingLayer
from foura.adapter.layer import FouraLayer
from foura.adapter.linear import Linear
from foura.adapter.merging import quantization_backend, untie
from foura.adapter.padding import mask_positions, masks_of_call
from foura.adapter.prefold import forget_prefolded, prefold


class FouraModel(BaseTuner):
    """Wraps a model with FouRA; made by `peft.get_peft_model(model, FouraConfig(...))`."""

    prefix = "foura_"
    tuner_layer_cls = FouraLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.copy()
    uses_shared_state = False
    _mask_positions: Mapping[str, int] = MappingProxyType({})  # a model that was pickled before has none of its own

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's own; if no target is found, the error lists the linear layers of the model."""
        self._mask_positions = mask_positions(model)
        config, generates = self.peft_config[adapter_name], getattr(model, "can_generate", bool)
        if looks_ahead(config) and config.task_type != CAUSAL and generates():
            warnings.warn(LOOKS_AHEAD, stacklevel=5)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except ValueError as error:
            if "not found in the base model" not in str(error):
                raise
            found = ", ".join(linear_layers(model)) or "none"
            raise type(error)(f"{error} The linear layers of this model are: {found}.") from None
        if not self.training:  # a further adapter of a model in evaluation
            for layer in (module for module in model.modules() if isinstance(module, FouraLayer)):
                if (gate := layer.gate(adapter_name)) is not None:
                    gate.eval()
        fold_together(model)
        avoid_fast_path(model)

    def _create_and_replace(  # type: ignore[override]
        self,
        config: FouraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        r = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), current_key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), current_key), config.foura_alpha)
        splits = config.output_splits.get(get_pattern_key(list(config.output_splits), current_key), 1)
        if isinstance(target, FouraLayer):
            target.update_layer(adapter_name, config, r, alpha, splits)
            return
        kind = layer_class(target.get_base_layer() if isinstance(target, BaseTunerLayer) else target)
        if kind is None:
            raise ValueError(
                "FouRA adapts nn.Linear (quantised too), Conv1D, nn.Embedding, nn.Conv1d/2d/3d and "
                f"nn.MultiheadAttention, but the target {current_key!r} is {type(target).__name__}; name other "
                "target_modules or list it in exclude_modules."
            )
        if isinstance(parent, nn.MultiheadAttention):
            warnings.warn(
                f"nn.MultiheadAttention multiplies by the weight of its {target_name} itself, so that the adapter of "
                f"{current_key!r} does nothing; name the attention module in target_modules, or list this in exclude_modules.",
                stacklevel=2,
            )
        layer = kind(target, adapter_name, config, r, alpha, splits, **get_quantization_kwargs(self))
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is made active
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, nn.MultiheadAttention):  # unwrapping; it has no `weight` for PEFT to copy
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT's own; the bare model also loses our hooks, so that it can be pickled for whoever has no foura.

        Raises:
            ValueError: a layer cannot be merged, before any of them is.
        """
        if kwargs.get("merge", args[0] if args else True):
            for module in self.model.modules():
                if isinstance(module, FouraLayer):
                    module.check_weight_is_stored(kwargs.get("adapter_names", args[3] if len(args) > 3 else None))
        model: Any = super()._unload_and_optionally_merge(*args, **kwargs)
        for hooks in (self.model._forward_pre_hooks, self.model._forward_hooks):
            for number in [key for key, hook in hooks.items() if _is_ours(hook)]:
                del hooks[number]
                self.model._forward_hooks_always_called.pop(number, None)
        allow_fast_path(self.model)
        return model

    def _cast_adapter_dtype(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's own, which puts new parameters in place of half-precision ones."""
        super()._cast_adapter_dtype(*args, **kwargs)
        for module in self.model.modules():
            if isinstance(module, FoldingLayer):
                module.adopt()

    def _check_merge_allowed(self) -> None:
        """PEFT calls this before it merges."""
        super()._check_merge_allowed()
        untie(self.model)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
    ) -> None:
        """Add a new adapter, the weighted combination of existing ones. Arguments as for PEFT's LoRA.

        Args:
            combination_type: "cat" is exact: the ranks are concatenated. "svd" is the best approximation of rank
                `svd_rank` (default: the largest rank combined). Both give plain LoRA factors (transform "identity") and
                take any mix of transforms. "linear" averages A and B themselves, for equal r and transform; it is cheap,
                and differs from the weighted sum of the updates unless there is one adapter.

        Raises:
            ValueError: an unknown adapter or type, an adapter named twice, another number of weights than adapters, a gate
                that depends on the input, or adapters that the type cannot combine. The model is then unchanged.
        """
        if adapter_name in self.peft_config:
            return
        if len(weights) != len(adapters):
            raise ValueError(
                f"{len(adapters)} adapters were named with {len(weights)} weights; give one weight for each"
            )
        if len(set(adapters)) < len(adapters):
            raise ValueError(f"an adapter is named twice in {', '.join(adapters)}; give it the sum of its weights")
        configs: Any = {name: self.peft_config.get(name) for name in adapters}
        self.peft_config[adapter_name] = combined_config(configs, combination_type, svd_rank, self.model)
        try:
            self.inject_adapter(self.model, adapter_name)
            for module in self.model.modules():
                if isinstance(module, FouraLayer) and adapter_name in module.foura_A:
                    combine_layer(module, dict(zip(adapters, weights, strict=True)), adapter_name, combination_type)
                    module.set_requires_grad(adapter_name, False)
            combine_saved(self.model, adapters, adapter_name)
        except BaseException:  # no adapter is better than half of one
            self.delete_adapter(adapter_name)
            raise

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT's own for checkpoint keys, and also for gates made of modules: foura_gate.<adapter>.net.weight."""
        gate = f".foura_gate.{adapter_name}."
        if gate in key:
            return key.replace(gate, ".foura_gate.", 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT enters this around every forward and generate: adapters per row, and the padding that gates ignore."""
        names = kwargs.pop("adapter_names", None)
        handles = [] if names is None else self._route_rows(names, kwargs.get("num_beams") or 1)
        try:
            with self._padding(args, kwargs):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT's classes of a task call this, and keep the mask back from `_enable_peft_forward_hooks`."""
        with self._padding(args, kwargs):
            return self.model(*args, **kwargs)

    def _padding(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[None]:
        """The context that tells gates what is padding in a call of the model."""
        if not any(map(heeds_padding, self.peft_config.values())):
            return nullcontext()
        return masks_of_call(self.model, self._mask_positions, args, kwargs)

    def _route_rows(self, names: list[str], beams: int) -> list[Any]:
        """Register hooks that tell every layer the adapter of each row, as in PEFT's LoRA; returns their handles."""
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        layers = [module for module in self.modules() if isinstance(module, (FouraLayer, AuxiliaryTrainingWrapper))]
        known = {name for layer in layers if isinstance(layer, FouraLayer) for name in layer.foura_A}
        if unknown := set(names) - known - {"__base__"}:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
        get_encoder = getattr(self.model, "get_encoder", None)
        encoder = get_encoder() if get_encoder else None
        # beam search repeats the rows of the decoder; an encoder still sees each row once
        once = set(encoder.modules()) if beams > 1 and encoder not in (None, self.model) else set()
        repeated = [name for name in names for _ in range(beams)]
        return [
            layer.register_forward_pre_hook(
                partial(_with_adapter_names, names=names if layer in once else repeated), with_kwargs=True
            )
            for layer in layers
        ]


def _with_adapter_names(_module: nn.Module, args: Any, kwargs: Any, names: list[str]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": names}


def fold_together(model: nn.Module) -> None:
    """Let all layers of `model` fold with each other, and before its forward where it is compiled; see `keep`."""
    layers = [module for module in model.modules() if isinstance(module, FoldingLayer)]
    if not layers:
        return
    folds = layers[0].folds
    for layer in layers:
        layer.folds = folds
        folds.join(layer)
    if not any(map(_is_ours, model._forward_pre_hooks.values())):
        model.register_forward_pre_hook(partial(prefold, folds))
        model.register_forward_hook(partial(forget_prefolded, folds), always_call=True)


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, partial) and hook.func in (prefold, forget_prefolded)


def layer_class(module: nn.Module) -> type[FouraLayer] | None:
    """The FouRA layer class for a module, or None if FouRA cannot adapt it."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return Linear
    if isinstance(module, nn.Embedding):
        return Embedding
    if isinstance(module, tuple(CONVOLUTIONS)):
        return Conv
    if isinstance(module, nn.MultiheadAttention):
        return MultiheadAttention
    backend = quantization_backend(module)
    return Linear if backend is not None and backend.layer_type == "linear" else None


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the nn.Linear layers in `model`, in order; adapted layers under the name of their wrapper."""
    return [name.removesuffix(".base_layer") for name, module in model.named_modules() if isinstance(module, nn.Linear)]
