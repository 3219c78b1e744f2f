"""Gates on the rank coordinates z = A F x (paper sec. 3.4, eq. 4 and App. C.2): one class each, in `GATES`.

A gate that depends on the input is a module, trained with the adapter (`gate.Gate`); `gate_forms` has those of "adaptive".
One that does not is a mask that the layer stores and folds into the weight, or nothing at all.

To add a gate, subclass `Gate` with `forward(u)` and register it: `GATES["relu"] = ReluGate`.
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from foura.adapter.gate import Gate, GateSettings
from foura.adapter.gate_forms import GATE_FORMS

__all__ = ["GATES", "AdaptiveGate", "FrozenMask", "Gate", "GateKind", "NoGate"]


class GateKind(Protocol):
    """A value of `GATES`."""

    depends_on_input: bool  # trained, refused by merging until frozen

    def make(self, rank: int, config: GateSettings) -> Gate | Tensor | None:
        """The module of an input-dependent gate, a boolean mask (r,), or None."""


class AdaptiveGate:
    """A trained network on the rank coordinates, in the form that `FouraConfig.gate_form` names."""

    depends_on_input: ClassVar[bool] = True

    @staticmethod
    def make(rank: int, config: GateSettings) -> Gate:
        return GATE_FORMS[config.gate_form].make(rank, config)


class FrozenMask:
    """A gate of one fixed bit per rank, calibrated by `freeze_gates` (sec. 3.4, "frozen mask"); all open at first."""

    depends_on_input: ClassVar[bool] = False

    @staticmethod
    def make(rank: int, config: GateSettings) -> Tensor:
        return torch.ones(rank, dtype=torch.bool)


class NoGate:
    """g = 1."""

    depends_on_input: ClassVar[bool] = False

    @staticmethod
    def make(rank: int, config: GateSettings) -> None:
        return None


# The choices of `FouraConfig.gate`; the first is the default.
GATES: dict[str, GateKind] = {"none": NoGate, "adaptive": AdaptiveGate, "frozen": FrozenMask}
