"""Training without an adapter: all weights (`adapter=full`), or the head alone (`adapter=head`)."""

from __future__ import annotations

from omegaconf import DictConfig

from foura.methods.method import Method


class Bare(Method):
    """The backbone's own weights are trained, and saved without PEFT."""

    def __init__(self, name: str, trained: str) -> None:
        super().__init__(name)
        self.trained = trained

    def changes_weights(self, adapter: DictConfig) -> bool:
        return self.trained == "body"
