"""Causal language models of transformers (`backbone=llama_small`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from foura.families.family import Family, Parts, example_tokens, load_pretrained, save_pretrained

if TYPE_CHECKING:
    from foura.backbone import Backbone


def _build(cfg: DictConfig) -> Parts:
    from foura.families.language.backbone import build_llama
    from foura.families.language.data import prepare_text
    from foura.families.language.sources import open_text
    from foura.families.language.task import Language

    # data first: a mistake in it is reported before a large model is loaded
    source = open_text(cfg.dataset, FAMILY.format(cfg.dataset.format))
    backbone = build_llama(cfg.backbone)
    data = prepare_text(source, cfg.dataset, cfg.seed, backbone.tokenizer, backbone.max_tokens)
    return Parts(backbone, data, lambda model: Language(model, cfg, backbone.tokenizer))


def _backbone(cfg: DictConfig, saved: Mapping[str, Any]) -> Backbone:
    from foura.families.language.backbone import build_llama

    return build_llama(cfg.backbone)


def _pretraining_loss(parts: Parts, model: Any, cfg: DictConfig) -> float:
    from foura.families.language.pretraining import pretraining_batches

    return parts.task(model).mean_loss(pretraining_batches(parts, cfg.evaluation.pretraining_text))


def _pretrain(out: Path | None) -> None:
    from foura.bundled.llama import FOLDER
    from foura.bundled.pretrain_llama import EPOCHS, pretrain_llama

    pretrain_llama(out or FOLDER, epochs=EPOCHS, seed=0)


INFERENCE = """import foura  # makes the method known to PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
model = PeftModel.from_pretrained(base, ADAPTER).eval()
prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))
"""


FAMILY = Family(
    name="llama_small",
    sources=("stdlib", "text", "jsonl", "hf"),
    bundled=("stdlib",),
    formats={
        "text": ("loss", "acc"),
        "completion": ("loss", "acc"),
        "commonsense": ("acc", "loss"),
        "verbalizer": ("acc", "loss"),
    },
    uses={
        "": (
            *("backbone.torch_dtype", "backbone.attn_implementation", "backbone.gradient_checkpointing"),
            *("dataset.block_size", "dataset.eval_limit"),
            *("evaluation.passages", "evaluation.passage_tokens", "evaluation.pretraining_text"),
        ),
        "pretrained": ("backbone.load_in",),
        "own data": ("dataset.path", "dataset.splits"),
        "dataset=hf": ("dataset.config",),
        "dataset=text": ("dataset.unreadable",),
        "text": ("dataset.columns.text",),
        "completion": ("dataset.columns.prompt", "dataset.columns.completion", "dataset.too_long"),
        "commonsense": ("dataset.too_long",),
        "verbalizer": ("dataset.template", "dataset.verbalizer", "dataset.columns.label", "dataset.too_long"),
    },
    bundled_model="bundled LLaMA",
    bundled_on="English documentation that comes with Python",
    inference=INFERENCE,
    causal=True,
    build=_build,
    save_merged=save_pretrained,
    load_merged=load_pretrained,
    backbone=_backbone,
    example=example_tokens,
    pretraining_loss=_pretraining_loss,
    pretrain=_pretrain,
)
