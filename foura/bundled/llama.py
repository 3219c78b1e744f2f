"""The bundled language model: the shape of a small LLaMA pretrained on Python's documentation, and the place of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BUNDLED_LLAMA: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "max_position_embeddings": 512,
    "vocab_size": 1024,
    "tie_word_embeddings": True,
}

FOLDER = Path(__file__).parent / "weights" / "llama_pydoc"  # in the form of transformers' save_pretrained
END, PAD = "<|endoftext|>", "<|pad|>"
