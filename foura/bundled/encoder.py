"""The bundled encoder: the sizes of a small BERT pretrained on Python's documentation, and where its files lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BUNDLED_ENCODER: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
    "vocab_size": 3072,
    "type_vocab_size": 1,  # the two texts of a pair are told apart by [SEP] alone, as in RoBERTa
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

FOLDER = Path(__file__).parent / "weights" / "bert_pydoc"  # in the form of transformers' save_pretrained
PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
