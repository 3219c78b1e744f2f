"""From examples of text to what a language model trains, validates and tests on: cut once, tokenised once, never mixed."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from foura.errors import UserError
from foura.families.language.text import CHOICE_FORMATS, Example, TextSource, cut, mislabel

IGNORED = -100  # a label that counts for nothing: prompts and padding


@dataclass(frozen=True)
class Tokens:
    """One sequence: ids (T,), labels (T,) with IGNORED where nothing is to be learnt, and the bytes that the labels spell."""

    ids: Tensor
    labels: Tensor
    bytes: int


@dataclass(frozen=True)
class Question:
    """Multiple choice: one sequence a choice, the same prompt in front of each."""

    candidates: tuple[Tokens, ...]
    gold: int


@dataclass
class LanguageData:
    """The data of one run: lists of Tokens, or, for validation and test of multiple choice, of Questions.

    Attributes: as of `splits.ImageData`; `collate` makes the batches of all of them.
    """

    train: list[Any]
    train_eval: list[Any]
    validation: list[Any]
    test: list[Any]
    sizes: dict[str, int]
    fingerprint: str
    collate: Any
    packed: bool  # whether items are blocks of running text
    judged: bool  # whether validation and test are Questions


def prepare_text(source: TextSource, cfg: DictConfig, seed: int, tokenizer: Any, max_tokens: int) -> LanguageData:
    """Cut and tokenise. `cfg.limit` training items are drawn with the run's seed, the rest is the same for every run.

    Raises:
        UserError: text that is shorter than a block, a block longer than the model's context, too few examples.
    """
    if cfg.block_size > max_tokens:
        raise UserError(f"dataset.block_size={cfg.block_size} is more than the model's context of {max_tokens} tokens.")
    choice = source.format in CHOICE_FORMATS
    examples = cut(source, cfg)
    if source.format == "text":
        items: dict[str, list[Any]] = {name: _blocks(name, part, cfg, tokenizer) for name, part in examples.items()}
    else:
        items = {name: list(part) for name, part in examples.items()}
    order = np.random.default_rng([seed, 0]).permutation(len(items["train"]))
    items["train"] = [items["train"][index] for index in order[: cfg.limit]]
    fixed = np.random.default_rng(cfg.split_seed)
    for name in ("validation", "test"):
        chosen = np.sort(fixed.permutation(len(items[name]))[: cfg.eval_limit])
        items[name] = [items[name][index] for index in chosen]
    if cfg.label_noise and choice:
        items["train"] = mislabel(items["train"], cfg.label_noise, seed)
    part = items["train"][: cfg.train_eval_limit]
    encode = partial(_sequence, tokenizer=tokenizer, cfg=cfg)
    if source.format == "text":
        train, train_eval, validation, test = items["train"], part, items["validation"], items["test"]
    else:
        judged = partial(_question, tokenizer=tokenizer, cfg=cfg) if choice else encode
        train, train_eval = [encode(item) for item in items["train"]], [judged(item) for item in part]
        validation, test = [judged(item) for item in items["validation"]], [judged(item) for item in items["test"]]
    return LanguageData(
        train=train,
        train_eval=train_eval,
        validation=validation,
        test=test,
        sizes={name: len(part) for name, part in items.items()},
        fingerprint=_fingerprint(items),
        collate=partial(collate, pad=tokenizer.pad_token_id),
        packed=source.format == "text",
        judged=choice,
    )


def _blocks(name: str, examples: list[Example], cfg: DictConfig, tokenizer: Any) -> list[Tokens]:
    """Documents one after another, each closed by the end token, in blocks of `block_size`; the last piece is left out."""
    ids: list[int] = []
    for example in examples:
        ids += tokenizer(example.text)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
    size = cfg.block_size
    if len(ids) < size:
        raise UserError(
            f"the {name} text has {len(ids)} tokens, less than one block of {size}: lower dataset.block_size, or give more "
            "text."
        )
    rows = torch.tensor(ids[: len(ids) // size * size]).view(-1, size)
    spelt = tokenizer.batch_decode(rows[:, 1:])  # the first token of a block is not predicted
    blocks = []
    for row, text in zip(rows, spelt, strict=True):
        labels = row.clone()
        labels[0] = IGNORED
        blocks.append(Tokens(row, labels, len(text.encode())))
    return blocks


def _fingerprint(items: dict[str, list[Any]]) -> str:
    """Hash of what is in each split (16 hex digits): of token ids for running text, of the texts for examples."""
    digest = hashlib.sha256()
    for name in sorted(items):
        digest.update(name.encode())
        for item in items[name]:
            digest.update(item.ids.numpy().tobytes() if isinstance(item, Tokens) else repr(item).encode())
    return digest.hexdigest()[:16]


def _sequence(example: Example, tokenizer: Any, cfg: DictConfig, text: str | None = None) -> Tokens:
    """Prompt and text (or another in its place); a prompt that is too long loses its beginning."""
    text = example.text if text is None else text
    prompt = tokenizer(example.prompt)["input_ids"] if example.prompt else []
    if not prompt:
        prompt = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    answer = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None or example.choices else [tokenizer.eos_token_id]
    answer = [*answer, *end][: cfg.block_size - 1]
    prompt = prompt[-(cfg.block_size - len(answer)) :]
    ids = torch.tensor([*prompt, *answer])
    labels = ids.clone()
    labels[: len(prompt)] = IGNORED
    return Tokens(ids, labels, len(text.encode()))


def _question(example: Example, tokenizer: Any, cfg: DictConfig) -> Question:
    candidates = tuple(_sequence(example, tokenizer, cfg, choice) for choice in example.choices)
    return Question(candidates, example.gold)


def collate(items: list[Any], pad: int) -> dict[str, Tensor]:
    """A batch: input_ids, attention_mask, labels (S, T), bytes (S,), padded on the right.

    Questions give a row a choice, and "question" (S,), which it belongs to, and "gold" (S,), whether it is the answer.
    """
    rows: list[Tokens] = []
    question: list[int] = []
    gold: list[bool] = []
    for number, item in enumerate(items):
        candidates = item.candidates if isinstance(item, Question) else (item,)
        rows += candidates
        question += [number] * len(candidates)
        gold += [not isinstance(item, Question) or place == item.gold for place in range(len(candidates))]
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)], labels[number, : len(row.ids)] = row.ids, row.labels
        mask[number, : len(row.ids)] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "bytes": torch.tensor([r.bytes for r in rows])}
    if any(isinstance(item, Question) for item in items):
        batch |= {"question": torch.tensor(question), "gold": torch.tensor(gold)}
    return batch
