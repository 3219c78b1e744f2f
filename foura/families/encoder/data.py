"""From labelled texts to what a run trains, validates and tests on: split once, tokenised once, never mixed."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from foura.data.draws import cut_at_random, cut_by_class, draw_at_random, draw_by_class, missing_shares, some_of
from foura.data.duplicates import kept_items
from foura.data.labels import commonest_share, wrong_labels
from foura.data.lengths import fitting_items
from foura.data.run_data import RunData
from foura.data.text_tokens import added, ends_once
from foura.errors import UserError
from foura.families.encoder.sources import Labelled, LabelledSource

# token ids with the tokenizer's special tokens, the label, and where the model has them the token types
Item = tuple[list[int], int | float] | tuple[list[int], int | float, list[int]]

TYPES = "token_type_ids"


@dataclass(kw_only=True)
class SequenceData(RunData):
    """Items are (token ids, label), or (token ids, label, token types) for a model that tells two texts apart by them.

    Attributes:
        noisy: the training items that dataset.label_noise gave a wrong label.
    """

    noisy: list[Item] = field(default_factory=list)


def prepare_labelled(
    source: LabelledSource, cfg: DictConfig, seed: int, tokenizer: Any, max_tokens: int, typed: bool = False
) -> SequenceData:
    """Split and tokenise. `cfg.limit` training items are drawn with the run's seed; the rest is the same for every run.

    Missing splits are cut from train: by group where the source has groups, else by class for classification and at random
    for regression. Texts are truncated to `cfg.block_size` tokens.

    Args:
        typed: the model has token types, which the tokenizer gives.

    Raises:
        UserError: too few items to split, a single class in a split, or a block longer than the model's context.
    """
    if cfg.block_size > max_tokens:
        raise UserError(f"dataset.block_size={cfg.block_size} is more than the model's context of {max_tokens} tokens.")
    splits = _without_copies(_split(source, cfg), cfg)
    encode = partial(_encode, tokenizer=tokenizer, typed=typed)
    if cfg.too_long == "drop":  # before any are drawn, so that as many are left as are wanted
        splits = _fitting(splits, encode, cfg)
    splits["train"] = _draw(splits["train"], cfg.limit, seed, source.classes)
    for name in ("validation", "test"):
        splits[name] = _draw(splits[name], cfg.eval_limit, cfg.split_seed, source.classes, "dataset.eval_limit")
    clean = splits["train"].labels
    if cfg.label_noise:
        if source.classes is None:
            raise UserError(
                "dataset.label_noise replaces classes by others, which regression does not have; leave it out."
            )
        wrong = wrong_labels(clean, cfg.label_noise, len(source.classes), seed)
        splits["train"] = replace(splits["train"], labels=wrong)
    _check_classes(splits, source.classes)
    _fitting(splits, encode, cfg)
    items = {name: encode(part, longest=cfg.block_size) for name, part in splits.items()}
    fixed = some_of(len(items["train"]), cfg.train_eval_limit, cfg.split_seed)
    noisy = np.flatnonzero(splits["train"].labels != clean)
    return SequenceData(
        train=items["train"],
        train_eval=[items["train"][index] for index in fixed],
        validation=items["validation"],
        test=items["test"],
        classes=source.classes,
        commonest=commonest_share(splits["validation"].labels) if source.classes else None,
        sizes={name: len(part) for name, part in items.items()},
        fingerprint=_fingerprint(splits, source.classes),
        collate=partial(collate, tokenizer=tokenizer),
        noisy=[items["train"][index] for index in noisy],
    )


def _split(source: LabelledSource, cfg: DictConfig) -> dict[str, Labelled]:
    splits = dict(source.splits)
    train = splits["train"]
    missing = missing_shares(splits, {"test": cfg.test_fraction, "validation": cfg.val_fraction})
    if train.groups:
        parts = _cut_by_group(train.groups, missing, cfg.split_seed)
        return splits | {name: train.subset(indices) for name, indices in parts.items()}
    if source.classes is None:
        counts = {name: max(1, round(share * len(train))) for name, share in missing.items()}
        parts = cut_at_random(len(train), counts, cfg.split_seed)
        return splits | {name: train.subset(indices) for name, indices in parts.items()}
    # each share is of all the items, so a later cut has to ask for more of what is left
    left = 1.0
    for name, share in missing.items():
        rest, part = cut_by_class(splits["train"].labels, share / left, cfg.split_seed, name)
        splits[name], splits["train"] = splits["train"].subset(part), splits["train"].subset(rest)
        left -= share
    return splits


def _cut_by_group(groups: list[str], shares: dict[str, float], seed: int) -> dict[str, Any]:
    """As `cut_at_random`, with all items of a group on one side; a share is one of the groups."""
    names = sorted(set(groups))
    parts = cut_at_random(len(names), {name: max(1, round(share * len(names))) for name, share in shares.items()}, seed)
    side = {names[index]: split for split, indices in parts.items() for index in indices}
    return {split: [n for n, group in enumerate(groups) if side[group] == split] for split in parts}


def _draw(
    items: Labelled, limit: int | None, seed: int, classes: list[str] | None, key: str = "dataset.limit"
) -> Labelled:
    """At most `limit` of the items, by class for classification. key: of the config, which says the limit."""
    if limit is None or limit >= len(items):
        return items
    by_class = classes is not None
    return items.subset(
        draw_by_class(items.labels, limit, seed, key) if by_class else draw_at_random(len(items), limit, seed)
    )


def _check_classes(splits: dict[str, Labelled], classes: list[str] | None) -> None:
    for name, part in splits.items():
        if len(part) < 2:
            raise UserError(f"the {name} split has {len(part)} items; at least 2 are needed.")
        if classes is not None and len(set(part.labels.tolist())) < 2:
            raise UserError(f"the {name} split has one class among {len(part)} items; a classifier needs at least 2.")


def _without_copies(splits: dict[str, Labelled], cfg: DictConfig) -> dict[str, Labelled]:
    """The splits without texts (or pairs) of one in another, whatever their labels."""
    contents = {split: list(zip(part.texts, part.pairs or part.texts, strict=True)) for split, part in splits.items()}
    names = {split: [repr(text[:40]) for text in part.texts] for split, part in splits.items()}
    kept = kept_items(contents, names, cfg.duplicates)
    return {
        split: part if len(kept[split]) == len(part) else part.subset(kept[split]) for split, part in splits.items()
    }


def _fitting(splits: dict[str, Labelled], encode: Any, cfg: DictConfig) -> dict[str, Labelled]:
    lost = {
        split: [max(0, len(item[0]) - cfg.block_size) for item in encode(part, longest=None)]
        for split, part in splits.items()
    }
    kept = fitting_items(lost, cfg.too_long, f"dataset.block_size={cfg.block_size} tokens", "the end of texts")
    return {
        split: part if len(kept[split]) == len(part) else part.subset(kept[split]) for split, part in splits.items()
    }


def _encode(part: Labelled, tokenizer: Any, longest: int | None, typed: bool) -> list[Item]:
    """The items, each cut to `longest` tokens, with the tokenizer's special tokens once at both ends."""
    cut: dict[str, Any] = {} if longest is None else {"truncation": True, "max_length": longest}
    cut |= {"return_token_type_ids": True} if typed else {}
    if part.pairs is None:
        found = tokenizer(part.texts, **cut)
    elif any(added(tokenizer)):
        found = tokenizer(part.texts, text_pair=part.pairs, **cut)
    else:  # nothing would stand between the two texts of a pair
        between = tokenizer.sep_token or tokenizer.eos_token or "\n"
        found = tokenizer([f"{text}{between}{pair}" for text, pair in zip(part.texts, part.pairs, strict=True)], **cut)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    kept = [ends_once(one, special) for one in found["input_ids"]]
    ids = [one[span] for one, span in zip(found["input_ids"], kept, strict=True)]
    columns = [ids, part.labels.tolist()]
    if typed:
        columns.append([one[span] for one, span in zip(found["token_type_ids"], kept, strict=True)])
    return list(zip(*columns, strict=True))


def collate(items: list[Item], tokenizer: Any) -> dict[str, Tensor]:
    """A batch: input_ids, attention_mask and perhaps token_type_ids (S, T), padded to the longest text, and labels (S,)."""
    columns = dict(zip(("input_ids", "labels", TYPES), zip(*items, strict=True), strict=False))
    labels = torch.tensor(columns.pop("labels"))
    padded = tokenizer.pad({key: list(values) for key, values in columns.items()}, return_tensors="pt")
    return {**{key: padded[key] for key in (*columns, "attention_mask")}, "labels": labels}


def _fingerprint(splits: dict[str, Labelled], classes: list[str] | None) -> str:
    digest = hashlib.sha256(repr(classes).encode())
    for name in sorted(splits):
        part = splits[name]
        digest.update(repr((name, part.texts, part.pairs)).encode())
        digest.update(part.labels.tobytes())
    return digest.hexdigest()[:16]
