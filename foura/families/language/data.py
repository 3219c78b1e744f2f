"""From examples of text to the data of a run: cut once, tokenised once, never mixed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from omegaconf import DictConfig

from foura.data.draws import cut_at_random, draw_at_random, missing_shares, some_in_order
from foura.data.duplicates import kept_items
from foura.data.lengths import fitting_items
from foura.data.run_data import RunData
from foura.data.text_tokens import TextEncoder
from foura.errors import UserError
from foura.families.language.formats import Example
from foura.families.language.sources import TextSource
from foura.families.language.tokens import Question, Tokens, blocks, collate, lost_tokens, question, sequence

Encoder = Callable[[Any], Tokens | Question]
FEW = 10  # documents: fewer are each cut into consecutive parts


@dataclass(kw_only=True)
class LanguageData(RunData):
    """Lists of Tokens; for multiple choice, all but `train` are lists of Questions.

    Attributes:
        packed: items are blocks of running text.
        judged: the data is multiple choice.
        fixed: the places in `train` of the items of `train_eval`.
    """

    packed: bool
    judged: bool
    fixed: list[int]

    @property
    def observed(self) -> list[Tokens]:
        return [self.train[place] for place in self.fixed]


def prepare_text(source: TextSource, cfg: DictConfig, seed: int, tokenizer: Any, max_tokens: int) -> LanguageData:
    """Cut and tokenise the source.

    Args:
        cfg: the dataset group. seed: the run's, for the training items that `cfg.limit` keeps and for label noise.
        max_tokens: the model's context.

    Raises:
        UserError: text that is shorter than a block, a block longer than the model's context, too few examples, or label
            noise where there are no choices.
    """
    if cfg.block_size > max_tokens:
        raise UserError(f"dataset.block_size={cfg.block_size} is more than the model's context of {max_tokens} tokens.")
    examples, packed = _without_copies(cut(source, cfg), cfg), source.format == "text"
    judged = bool(examples["train"][0].choices)
    if cfg.label_noise and not judged:
        raise UserError(
            f"dataset.label_noise replaces right answers by wrong ones, which dataset.format={source.format} does not have; "
            "leave it out."
        )
    texts = TextEncoder(tokenizer)
    if cfg.too_long == "drop" and not packed:  # before any are drawn, so that as many are left as are wanted
        examples = _fitting(examples, texts, cfg)
    items: dict[str, list[Any]] = {
        name: blocks(name, part, cfg.block_size, texts) if packed else part for name, part in examples.items()
    }
    drawn = draw_at_random(len(items["train"]), cfg.limit, seed)
    fixed = some_in_order(drawn, cfg.train_eval_limit, cfg.split_seed)
    items = {"train": [items["train"][index] for index in drawn], **_held_out(items, cfg)}
    if not packed:
        _fitting(items, texts, cfg)
    if cfg.label_noise:
        items["train"] = mislabel(items["train"], cfg.label_noise, seed)
    to_learn, to_judge = _encoders(packed, judged, texts, cfg.block_size)
    return LanguageData(
        train=[to_learn(item) for item in items["train"]],
        train_eval=[to_judge(items["train"][place]) for place in fixed],
        validation=[to_judge(item) for item in items["validation"]],
        test=[to_judge(item) for item in items["test"]],
        sizes={name: len(part) for name, part in items.items()},
        fingerprint=_fingerprint(items),
        collate=partial(collate, pad=tokenizer.pad_token_id),
        packed=packed,
        judged=judged,
        fixed=fixed,
    )


def _without_copies(examples: dict[str, list[Example]], cfg: DictConfig) -> dict[str, list[Example]]:
    """The splits without items of one in another; of questions the prompt counts, of others the prompt and the text."""
    contents = {
        split: [(item.prompt, "" if item.choices else item.text) for item in part] for split, part in examples.items()
    }
    names = {split: [item.name for item in part] for split, part in examples.items()}
    kept = kept_items(contents, names, cfg.duplicates)
    return {split: [part[index] for index in kept[split]] for split, part in examples.items()}


def _fitting(examples: dict[str, list[Example]], texts: TextEncoder, cfg: DictConfig) -> dict[str, list[Example]]:
    lost = {split: [lost_tokens(item, texts, cfg.block_size) for item in part] for split, part in examples.items()}
    limit = f"dataset.block_size={cfg.block_size} tokens"
    kept = fitting_items(
        lost, cfg.too_long, limit, "the beginning of prompts and, if that is not enough, the end of texts"
    )
    return {split: [part[index] for index in kept[split]] for split, part in examples.items()}


def _held_out(items: dict[str, list[Any]], cfg: DictConfig) -> dict[str, list[Any]]:
    """The `cfg.eval_limit` validation and test items that count, the same for every run."""
    kept = {}
    generator = np.random.default_rng(cfg.split_seed)
    for name in ("validation", "test"):
        chosen = np.sort(generator.permutation(len(items[name]))[: cfg.eval_limit])
        kept[name] = [items[name][index] for index in chosen]
    return kept


def _encoders(packed: bool, judged: bool, texts: TextEncoder, size: int) -> tuple[Encoder, Encoder]:
    """(from an item to one that is trained on, from an item to one that is evaluated)."""
    if packed:
        return _unchanged, _unchanged
    learn = partial(sequence, texts=texts, size=size)
    return learn, partial(question, texts=texts, size=size) if judged else learn


def _unchanged(block: Tokens) -> Tokens:
    return block


def cut(source: TextSource, cfg: DictConfig) -> dict[str, list[Example]]:
    """Train, validation and test. Examples go to one side whole, at random; fewer than ten documents are cut each.

    Raises:
        UserError: too few examples, or shares that leave nothing to train on.
    """
    train = source.splits["train"]
    missing = missing_shares(source.splits, {"validation": cfg.val_fraction, "test": cfg.test_fraction})
    if missing and source.format == "text" and len(train) < FEW:
        return {**source.splits, **_consecutive(train, missing)}
    counts = {name: max(1, round(share * len(train))) for name, share in missing.items()}
    parts = cut_at_random(len(train), counts, cfg.split_seed)
    return {**source.splits, **{name: [train[index] for index in part] for name, part in parts.items()}}


def _consecutive(documents: list[Example], shares: dict[str, float]) -> dict[str, list[Example]]:
    """{"train": …, and each split of `shares`: …}: every document's beginning is for training, its end for the others."""
    parts = {"train": 1.0 - sum(shares.values()), **shares}
    splits: dict[str, list[Example]] = {name: [] for name in parts}
    for document in documents:
        start = 0
        for number, (name, share) in enumerate(parts.items(), 1):
            end = len(document.text) if number == len(parts) else start + round(share * len(document.text))
            splits[name].append(replace(document, text=document.text[start:end]))
            start = end
    return splits


def mislabel(examples: list[Example], share: float, seed: int) -> list[Example]:
    """Label noise: multiple choice with a share of the gold answers replaced by another choice, drawn with the seed."""
    generator = np.random.default_rng([seed, 1])
    wrong = set(generator.permutation(len(examples))[: round(share * len(examples))].tolist())
    changed = []
    for index, example in enumerate(examples):
        if index in wrong:
            gold = (example.gold + 1 + int(generator.integers(len(example.choices) - 1))) % len(example.choices)
            example = replace(example, gold=gold, text=example.choices[gold])
        changed.append(example)
    return changed


def _fingerprint(items: dict[str, list[Any]]) -> str:
    """Hash of the items of each split (16 hex digits): of token ids for running text, of the texts for examples."""
    digest = hashlib.sha256()
    for name in sorted(items):
        digest.update(name.encode())
        for item in items[name]:
            digest.update(item.ids.numpy().tobytes() if isinstance(item, Tokens) else repr(item).encode())
    return digest.hexdigest()[:16]
