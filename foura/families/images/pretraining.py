"""Forgetting of the bundled ViT: its loss on the glyphs that it was pretrained on."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foura.bundled.glyphs import render_glyphs
from foura.bundled.vit import INPUT_MEAN, INPUT_STD, WEIGHTS
from foura.files import read_weights

GLYPHS = 512
SEED = 10_000_019  # far from the seeds of the pretraining


def pretraining_loss(model: Any) -> float:
    """Cross-entropy (nats) of the head that the ViT was pretrained with, on the model's present features."""
    pixels, labels = _glyphs()
    images = (torch.from_numpy(pixels).unsqueeze(1).float() / 255 - INPUT_MEAN[0]) / INPUT_STD[0]
    images = images.to(next(model.parameters()).dtype)  # trainer.precision=bf16-true leaves the weights in it
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    head = read_weights(WEIGHTS)
    logits = nn.functional.linear(features.float(), head["head.weight"].float(), head["head.bias"].float())
    return float(nn.functional.cross_entropy(logits, torch.from_numpy(labels)))


@functools.cache
def _glyphs() -> tuple[np.ndarray, np.ndarray]:
    """Drawn once per process: each run measures before and after its training."""
    return render_glyphs(GLYPHS, seed=SEED)
