"""The embedded language model: a small LLaMA pretrained on the Python documentation, and where its files lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EMBEDDED_LLAMA: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "max_position_embeddings": 512,
    "vocab_size": 1024,
    "tie_word_embeddings": True,
}

FOLDER = Path(__file__).parent / "weights" / "llama_pydoc"  # as transformers' save_pretrained leaves it
END, PAD = "<|endoftext|>", "<|pad|>"
