"""Forgetting of the bundled LLaMA: batches of the text that it was pretrained on."""

from pydoc_data.topics import topics
from typing import Any

import torch

from foura.families.family import Parts
from foura.families.language.tokens import Tokens

BLOCKS, BLOCK, BATCH = 64, 128, 32  # blocks, tokens per block, blocks per batch


def pretraining_batches(parts: Parts) -> list[Any]:
    """Batches of blocks of Python's help topics, in the form that the task evaluates."""
    backbone: Any = parts.backbone
    ids = [token for name in sorted(topics) for token in backbone.tokenizer(topics[name])["input_ids"]]
    blocks = torch.tensor(ids[: BLOCKS * BLOCK]).view(-1, BLOCK)
    items = [Tokens(block, block, len(backbone.tokenizer.decode(block.tolist()).encode())) for block in blocks]
    return [parts.data.collate(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
