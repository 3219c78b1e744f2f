"""Encoders of transformers for text classification and regression (`backbone=bert`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.families.family import (
    Family,
    Parts,
    example_tokens,
    load_pretrained,
    save_pretrained,
    saved_outputs,
    untrained,
)

if TYPE_CHECKING:
    from foura.backbone import Backbone


def _build(cfg: DictConfig) -> Parts:
    from foura.families.encoder.backbone import build_encoder, start_at
    from foura.families.encoder.data import prepare_labelled
    from foura.families.encoder.sources import open_labelled
    from foura.families.encoder.task import SequenceTask

    # data first: a mistake in it is reported before a large model is loaded
    source = open_labelled(cfg.dataset, FAMILY.format(cfg.dataset.format))
    backbone = build_encoder(cfg.backbone, source.classes)
    data = prepare_labelled(source, cfg.dataset, cfg.seed, backbone.tokenizer, backbone.max_tokens, backbone.typed)
    if data.classes is None:
        start_at(backbone, sum(item[1] for item in data.train) / len(data.train))
    return Parts(backbone, data, lambda model: SequenceTask(model, data, cfg))


def _backbone(cfg: DictConfig, saved: Mapping[str, Any]) -> Backbone:
    from foura.families.encoder.backbone import build_encoder

    if FAMILY.format(cfg.dataset.format) == "regression":
        return build_encoder(cfg.backbone, None)
    outputs = saved_outputs(build_encoder(untrained(cfg.backbone), ["0"]), saved)
    return build_encoder(cfg.backbone, [str(number) for number in range(outputs)])


def _pretraining_loss(parts: Parts, model: Any, cfg: DictConfig) -> float:
    from foura.families.encoder.pretraining import pretraining_loss

    return pretraining_loss(parts, model)


def _pretrain(out: Path | None) -> None:
    from foura.bundled.encoder import FOLDER
    from foura.bundled.pretrain_encoder import EPOCHS, pretrain_encoder

    pretrain_encoder(out or FOLDER, epochs=EPOCHS, seed=0)


INFERENCE = """import torch
import foura  # makes the method known to PEFT
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=CLASSES)  # 1 for regression
model, tokenizer = PeftModel.from_pretrained(base, ADAPTER).eval(), AutoTokenizer.from_pretrained(BASE)
with torch.no_grad():
    print(model(**tokenizer(["a text", "another"], padding=True, return_tensors="pt")).logits.softmax(-1))
"""


FAMILY = Family(
    name="bert",
    sources=("docstrings", "jsonl", "hf"),
    bundled=("docstrings",),
    formats={"classification": ("acc", "loss", "f1", "mcc"), "regression": ("spearman", "loss", "pearson")},
    uses={
        "": (
            *("backbone.torch_dtype", "backbone.attn_implementation", "backbone.gradient_checkpointing"),
            *("dataset.block_size", "dataset.eval_limit", "dataset.too_long"),
        ),
        "pretrained": ("backbone.load_in",),
        "own data": (
            *("dataset.path", "dataset.splits"),
            *("dataset.columns.text", "dataset.columns.text_pair", "dataset.columns.label"),
        ),
        "dataset=hf": ("dataset.config",),
    },
    bundled_model="bundled BERT",
    bundled_on="Python documentation",
    inference=INFERENCE,
    causal=False,
    build=_build,
    save_merged=save_pretrained,
    load_merged=load_pretrained,
    backbone=_backbone,
    example=example_tokens,
    pretraining_loss=_pretraining_loss,
    pretrain=_pretrain,
)
