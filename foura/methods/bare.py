"""Training without an adapter: all weights (`adapter=full`), or the head alone (`adapter=head`, a linear probe)."""

from __future__ import annotations

from omegaconf import DictConfig

from foura.methods.method import Method


class Bare(Method):
    """The backbone's own weights are trained, and saved without PEFT.

    Args:
        name: the choice of `adapter.method`.
        trained: "body", with the head, or "head".
    """

    uses = ()

    def __init__(self, name: str, trained: str) -> None:
        super().__init__(name)
        self.trained = trained

    def changes_weights(self, adapter: DictConfig) -> bool:
        return self.trained == "body"
