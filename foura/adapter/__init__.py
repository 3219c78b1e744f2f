"""The method: FouRA as a PEFT tuner. Importing this package registers it with PEFT."""

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from foura.adapter.config import FouraConfig
from foura.adapter.export import save_as_lora, to_lora
from foura.adapter.freeze import effective_rank, freeze_gates
from foura.adapter.hotswap import hotswap_adapter
from foura.adapter.model import FouraModel
from foura.adapter.optim import param_groups
from foura.adapter.padding import attention_mask
from foura.adapter.peft_type import foura_peft_type

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

if foura_peft_type() not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name="foura", config_cls=FouraConfig, model_cls=FouraModel)
