"""Forgetting of the bundled UNet: batches of the plain letters that it was pretrained on."""

from typing import Any

import torch

from foura.bundled.letters import render_letters
from foura.families.family import Parts

LETTERS = 128  # each is evaluated at several noise levels
SEED = 10_000_019  # far from the seeds of the pretraining


def pretraining_batches(parts: Parts) -> list[Any]:
    """One batch of plain letters, in the form that the task evaluates."""
    backbone: Any = parts.backbone
    pixels, captions = render_letters(LETTERS, seed=SEED, style="plain")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return [(backbone.encode(images), backbone.tokenize(captions), torch.arange(len(images)))]
