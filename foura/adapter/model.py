"""The PEFT tuner: finds the layers that a FouraConfig names and wraps them."""

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn

from foura.adapter.config import FouraConfig
from foura.adapter.layer import FouraLayer, Linear


class FouraModel(BaseTuner):
    """Wraps a model with FouRA; made by `peft.get_peft_model(model, FouraConfig(...))`."""

    prefix = "foura_"
    tuner_layer_cls = FouraLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.copy()
    uses_shared_state = False

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except ValueError as error:
            if "not found in the base model" not in str(error):
                raise
            found = ", ".join(linear_layers(model)) or "none"
            raise type(error)(f"{error} The linear layers of this model are: {found}.") from None

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
        if not isinstance(target, nn.Linear):
            raise ValueError(
                f"FouRA adapts nn.Linear, but the target {current_key!r} is {type(target).__name__}; "
                "name other target_modules or list it in exclude_modules."
            )
        layer = Linear(target, adapter_name, config, r, alpha, splits)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is made active
        self._replace_module(parent, target_name, layer, target)


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the nn.Linear layers in `model`, in order, each adapted layer under its own name."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            names.append(name.removesuffix(".base_layer"))
    return names
