"""Texts as the language family reads them."""

from omegaconf import OmegaConf

from foura.families.language.data import prepare_text
from foura.schema import DatasetConfig


def config(**fields):
    return OmegaConf.structured(DatasetConfig(name="test", source=fields.pop("source", "jsonl"), **fields))


def prepared(source, llama, seed=0, **fields):
    return prepare_text(source, config(**fields), seed, llama.tokenizer, llama.max_tokens)
