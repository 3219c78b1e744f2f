"""The adapter methods. A new one is a subclass of `Method` and an entry of `METHODS`; a method of PEFT needs YAML alone.

Importing this package imports neither torch nor PEFT.
"""

from omegaconf import DictConfig

from foura.methods.adalora import AdaLora
from foura.methods.bare import Bare
from foura.methods.budgeted import Budgeted, circulant_block, coefficients
from foura.methods.foura import Foura
from foura.methods.lora import Lora
from foura.methods.method import Method
from foura.methods.peer import Peer
from foura.methods.sora import Sora

_ALL = (
    Foura("foura"),
    Lora("lora"),
    Lora("dora", use_dora=True),
    AdaLora("adalora"),
    Sora("sora"),
    Peer("vera", "VERA"),
    Budgeted("fourierft", "FOURIERFT", "n_frequency_pattern", coefficients),
    Budgeted("waveft", "WAVEFT", "n_frequency_pattern", coefficients),
    Budgeted("c3a", "C3A", "block_size_pattern", circulant_block),
    Bare("full", "body"),
    Bare("head", "head"),
    Peer("peft"),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
OPTIONAL = tuple(
    dict.fromkeys(key for method in _ALL for key in method.uses)
)  # keys of `adapter` that some have no use for


def method_of(cfg: DictConfig) -> Method:
    """The method of a run's config."""
    return METHODS[cfg.adapter.method]
