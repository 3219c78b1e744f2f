"""Encoders of transformers for text classification and regression (`backbone=bert`)."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from foura.families.family import Family, Parts, save_pretrained


def _build(cfg: DictConfig) -> Parts:
    from foura.families.encoder.backbone import build_encoder, start_at
    from foura.families.encoder.data import prepare_labelled
    from foura.families.encoder.sources import open_labelled
    from foura.families.encoder.task import SequenceTask

    # data first: a mistake in it is reported before a large model is loaded
    source = open_labelled(cfg.dataset, FAMILY.format(cfg.dataset.format))
    backbone = build_encoder(cfg.backbone, source.classes)
    data = prepare_labelled(source, cfg.dataset, cfg.seed, backbone.tokenizer, backbone.max_tokens)
    if data.classes is None:
        start_at(backbone, sum(label for _, label in data.train) / len(data.train))
    return Parts(backbone, data, lambda model: SequenceTask(model, data, cfg))


def _pretraining_loss(parts: Parts, model: Any, cfg: DictConfig) -> float:
    from foura.families.encoder.pretraining import pretraining_loss

    return pretraining_loss(parts, model)


def _pretrain(out: Path | None) -> None:
    from foura.bundled.encoder import FOLDER
    from foura.bundled.pretrain_encoder import EPOCHS, pretrain_encoder

    pretrain_encoder(out or FOLDER, epochs=EPOCHS, seed=0)


FAMILY = Family(
    name="bert",
    sources=("docstrings", "jsonl", "hf"),
    bundled=("docstrings",),
    formats={"classification": ("acc", "loss", "f1", "mcc"), "regression": ("spearman", "loss", "pearson")},
    uses={
        "": (
            *("backbone.torch_dtype", "backbone.attn_implementation", "backbone.gradient_checkpointing"),
            *("dataset.block_size", "dataset.eval_limit"),
        ),
        "pretrained": ("backbone.load_in",),
        "own data": ("dataset.path", "dataset.columns.text", "dataset.columns.text_pair", "dataset.columns.label"),
    },
    causal=False,
    build=_build,
    save_merged=save_pretrained,
    pretraining_loss=_pretraining_loss,
    pretrain=_pretrain,
)
