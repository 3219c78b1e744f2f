"""Methods of PEFT without a rank, given as many parameters in each layer as LoRA has at the run's rank.

FourierFT (Gao et al., ICML 2024, arXiv 2405.03003), WaveFT (arXiv 2505.12532), C3A (arXiv 2407.19342).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.methods.method import Layers
from foura.methods.peer import Peer

if TYPE_CHECKING:
    from peft import PeftConfig


class Budgeted(Peer):
    """A method whose size is set layer by layer.

    Args:
        name: the choice of `adapter.method`.
        peft_type: PEFT's name of the method.
        pattern: the field of its PEFT config that holds {layer name: size}.
        size: (parameters to spend, in_features, out_features) -> the size of a layer.
    """

    def __init__(self, name: str, peft_type: str, pattern: str, size: Callable[[int, int, int], int]) -> None:
        super().__init__(name, peft_type)
        self.pattern, self.size = pattern, size

    def sizes(self, cfg: DictConfig, kind: type[PeftConfig], layers: Layers) -> dict[str, Any]:
        from foura.backbone import layer_size

        shapes = {name: layer_size(layer) for name, layer in layers.items()}
        sizes = {name: self.size(cfg.rank * sum(shape), *shape) for name, shape in shapes.items()}
        return {**super().sizes(cfg, kind, layers), self.pattern: sizes}

    def sized_by_rank(self, adapter: DictConfig) -> bool:
        return self.pattern not in adapter.options


def coefficients(budget: int, in_features: int, out_features: int) -> int:
    """The number of trained coefficients of ΔW: each is one parameter."""
    return min(budget, in_features * out_features)


def circulant_block(budget: int, in_features: int, out_features: int) -> int:
    """The side of C3A's circulant blocks: a divisor of both widths, with in · out / side parameters nearest to the budget."""
    common = math.gcd(in_features, out_features)
    sides = [side for side in range(1, common + 1) if common % side == 0]
    return min(sides, key=lambda side: abs(math.log(in_features * out_features / side / budget)))
