"""Forgetting: batches of the text that a language model was pretrained on, or of text like it."""

import itertools
from pydoc_data.topics import topics
from typing import Any

import torch

from foura.data.text_tokens import TextEncoder
from foura.errors import UserError
from foura.families.family import Parts
from foura.families.language.tokens import Tokens
from foura.files import find, read_text

BLOCKS, BLOCK, BATCH = 64, 128, 32  # blocks at most, tokens per block, blocks per batch
ENOUGH = BLOCKS * BLOCK * 16  # characters of a file: more than BLOCKS blocks of any text with a tokenizer made for it


def pretraining_batches(parts: Parts, file: str | None) -> list[Any]:
    """Batches of the first blocks of a text, in the form that the task evaluates.

    Args:
        file: a text file; None: Python's help topics, on which the bundled LLaMA was pretrained.

    Raises:
        UserError: a file that is not there, is not text, or has less than one block.
    """
    backbone: Any = parts.backbone
    size = min(BLOCK, backbone.max_tokens)
    ids = _topics(backbone.tokenizer, BLOCKS * size) if file is None else _of_file(file, backbone.tokenizer, size)
    blocks = torch.tensor(ids[: min(len(ids) // size, BLOCKS) * size]).view(-1, size)
    items = [Tokens(block, block, len(backbone.tokenizer.decode(block.tolist()).encode())) for block in blocks]
    return [parts.data.collate(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]


def _topics(tokenizer: Any, count: int) -> list[int]:
    """The first `count` tokens."""
    tokens = (token for name in sorted(topics) for token in tokenizer(topics[name])["input_ids"])
    return list(itertools.islice(tokens, count))


def _of_file(file: str, tokenizer: Any, size: int) -> list[int]:
    key = "evaluation.pretraining_text"
    ids, _ = TextEncoder(tokenizer).document(read_text(find(file, key))[:ENOUGH])
    if len(ids) < size:
        raise UserError(
            f"{key}={file} has {len(ids)} tokens; forgetting is measured on blocks of {size}: give more text."
        )
    return ids
