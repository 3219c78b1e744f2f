"""FouRA on nn.Embedding: y = E[i] + s · F⁻¹ B (g(z) ⊙ z), z = A[:, i].

The vocabulary has no order, so no transform acts on it: A is (r, num_embeddings), and real for every transform. F⁻¹
acts on the embedding axis.
"""

from typing import Any

import torch
from torch import Tensor

from foura.adapter.delta import gated
from foura.adapter.fold import UP
from foura.adapter.layer import FouraLayer
from foura.adapter.merging import Factors
from foura.adapter.transforms import Transform


class Embedding(FouraLayer):
    """FouRA on nn.Embedding; x holds token ids, any shape. A base layer's `embed_scale` applies as in PEFT's LoRA."""

    def _shape_A(self, transform: Transform, r: int) -> tuple[int, ...]:
        return (r, self.in_features)

    def get_fan_in(self) -> int:
        return 3  # each token picks one column of A: unit variance, as in PEFT's LoRA

    def fold(self, adapter_name: str) -> Factors:
        """(A (r, num_embeddings), F⁻¹B (embedding_dim, r)); z is real, so only the first part of the columns counts."""
        up = self._fold_side(adapter_name, self.foura_B[adapter_name], UP)
        return self.foura_A[adapter_name].to(up.dtype), up[:, : self.r[adapter_name]]

    def _weight_shaped(self, down: Tensor, up: Tensor) -> Tensor:
        return (up @ down).T

    def delta(self, adapter_name: str, x: Tensor) -> Tensor:
        base: Any = self.get_base_layer()
        A = self.foura_A[adapter_name]
        _, up = self.fold(adapter_name)
        up = self.mask_up(adapter_name, up).to(A.dtype)
        z_r = torch.nn.functional.embedding(x, A.T, padding_idx=base.padding_idx, sparse=base.sparse)
        z_r = self.foura_dropout[adapter_name](z_r)
        delta = gated(z_r, self.r[adapter_name], self.gate(adapter_name)) @ up.T * self.scaling[adapter_name]
        scale = self._get_embed_scale()
        return delta if scale is None else delta * scale.to(delta.dtype)
