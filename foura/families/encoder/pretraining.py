"""Forgetting of the bundled encoder: its masked language modelling loss on text that it was pretrained on."""

import itertools
from pydoc_data.topics import topics
from typing import Any

import torch
from torch.nn import functional
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from foura.bundled.encoder import BUNDLED_ENCODER, FOLDER
from foura.bundled.pretrain_encoder import mask
from foura.families.family import Parts
from foura.files import read_weights

BLOCKS, BLOCK = 64, 128  # blocks, tokens per block


def pretraining_loss(parts: Parts, model: Any) -> float:
    """Nats per masked token of Python's help topics, by the head that the encoder was pretrained with."""
    backbone: Any = parts.backbone
    tokenizer = backbone.tokenizer
    device = next(model.parameters()).device
    texts = (topics[name] for name in sorted(topics))
    parts_of_ids = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts)
    ids = list(itertools.islice(itertools.chain.from_iterable(parts_of_ids), BLOCKS * BLOCK))
    blocks = torch.tensor(ids).view(BLOCKS, BLOCK)
    hidden, predicted = mask(blocks, tokenizer.mask_token_id, torch.Generator().manual_seed(0))
    states = model.bert(input_ids=hidden.to(device)).last_hidden_state
    logits = _head().to(device)(states[predicted.to(device)].float())
    return float(functional.cross_entropy(logits, blocks[predicted].to(device)))


def _head() -> Any:
    """The language modelling head in the bundled weights; its output matrix is that of the embeddings."""
    head = BertOnlyMLMHead(BertConfig(**BUNDLED_ENCODER)).eval()
    state = {name: tensor.float() for name, tensor in read_weights(FOLDER / "model.safetensors").items()}
    own = {name.removeprefix("cls."): tensor for name, tensor in state.items() if name.startswith("cls.")}
    own["predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    own.setdefault("predictions.decoder.bias", own["predictions.bias"])
    head.load_state_dict(own)
    return head
