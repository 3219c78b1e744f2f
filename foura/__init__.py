"""FouRA: Fourier Low-Rank Adaptation (Borse et al., NeurIPS 2024) as a PEFT tuner, and a framework to compare it.

`import foura` registers the method with PEFT as soon as PEFT itself is imported, and loads nothing before that, so that
the command line and the checks of a configuration start at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from foura.adapter import (
        FouraConfig,
        FouraModel,
        attention_mask,
        effective_rank,
        freeze_gates,
        hotswap_adapter,
        param_groups,
        save_as_lora,
        to_lora,
    )

__version__ = "0.1.0"
__all__ = [
    "FouraConfig",
    "FouraModel",
    "attention_mask",
    "effective_rank",
    "freeze_gates",
    "hotswap_adapter",
    "param_groups",
    "save_as_lora",
    "to_lora",
]


@when_imported("peft")
def _register(_peft: Any) -> None:
    importlib.import_module("foura.adapter")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("foura.adapter"), name)
    raise AttributeError(f"module 'foura' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
