"""Labelled texts: the bundled docstrings, JSON lines, or anything that `datasets.load_dataset` reads.

Columns: `dataset.columns.text`, for pairs `text_pair` too, and `label`: for `dataset.format=classification` a class (a text
or an integer), for `regression` a number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import DictConfig

from foura.data.records import (
    UNLABELLED,
    Records,
    blank,
    filled,
    labelled_splits,
    open_records,
    refuse_unlabelled,
    text_field,
)
from foura.errors import UserError


@dataclass
class Labelled:
    """Texts, pairs of texts or both, and their labels.

    Attributes:
        labels: class indices (int64), or numbers (float32) for regression.
        groups: items with the same one belong on the same side of a split; empty: each item is by itself.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    groups: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def subset(self, indices: Any) -> "Labelled":
        """The items with these indices, in this order."""
        order = [int(index) for index in indices]
        texts, pairs, groups = (
            [column[i] for i in order] if column else column for column in (self.texts, self.pairs, self.groups)
        )
        return Labelled(texts or [], pairs, self.labels[order], groups or [])


@dataclass
class LabelledSource:
    """{"train": …, and "validation" and "test" where the data brings them}, and the classes (None for regression)."""

    splits: dict[str, Labelled]
    classes: list[str] | None


def open_labelled(cfg: DictConfig, format: str) -> LabelledSource:
    """The data that `cfg` (the dataset group) names.

    Args:
        format: "classification" or "regression".

    Raises:
        UserError: a path, column or label that is not there, or labels of the wrong kind.
    """
    if cfg.source == "docstrings":
        if format != "classification":
            raise UserError(f"dataset=docstrings is for classification, not for dataset.format={format}.")
        return _docstrings()
    records = open_records(cfg)
    columns = (cfg.columns.text, cfg.columns.text_pair) if cfg.columns.text_pair else (cfg.columns.text,)
    splits = {
        name: filled(named, columns, name) for name, named in labelled_splits(records.splits, cfg.columns.label).items()
    }
    return _numbers(splits, cfg) if format == "regression" else _classes(splits, cfg, records)


def _docstrings() -> LabelledSource:
    from foura.bundled.docstrings import load_docstrings

    found = load_docstrings()
    labels = np.array(found.labels, dtype=np.int64)
    return LabelledSource(
        {"train": Labelled(list(found.texts), None, labels, list(found.groups))}, list(found.class_names)
    )


def _numbers(splits: Any, cfg: DictConfig) -> LabelledSource:
    found = {}
    for split, named in splits.items():
        labels = [_label(row, name, cfg) for name, row in named]
        for label, (name, _) in zip(labels, named, strict=True):
            if isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label):
                raise UserError(
                    f"{name}: dataset.columns.label={cfg.columns.label} is {label!r}, and regression needs finite numbers; "
                    "for classes use dataset.format=classification."
                )
        found[split] = _texts(named, np.array(labels, dtype=np.float32), cfg)
    return LabelledSource(found, None)


def _classes(splits: Any, cfg: DictConfig, records: Records) -> LabelledSource:
    names = records.class_names.get(cfg.columns.label)
    seen: dict[str, list[Any]] = {}
    for split, named in splits.items():
        seen[split] = [_label(row, name, cfg) for name, row in named]
        labelled = zip(seen[split], named, strict=True)
        without = [name for label, (name, _) in labelled if blank(label) or (names and label == UNLABELLED)]
        refuse_unlabelled(without, len(named), split, cfg.columns.label)
        for label, (name, _) in zip(seen[split], named, strict=True):
            if isinstance(label, float) or not isinstance(label, str | int):
                raise UserError(
                    f"{name}: dataset.columns.label={cfg.columns.label} is {label!r}, and classes are texts or integers; for "
                    "numbers use dataset.format=regression."
                )
    values: list[Any] = (
        list(range(len(names))) if names else sorted(set(seen["train"]), key=lambda v: (str(type(v)), v))
    )
    index_of = {value: index for index, value in enumerate(values)}
    for split, labels in seen.items():
        unknown = sorted({str(label) for label in labels if label not in index_of})
        if unknown:
            raise UserError(f"the {split} split has classes that train lacks: {', '.join(unknown)}.")
    if len(values) < 2:
        raise UserError(f"the training data has one class ({values[0]}); a classifier needs at least 2.")
    found = {
        split: _texts(named, np.array([index_of[label] for label in seen[split]], dtype=np.int64), cfg)
        for split, named in splits.items()
    }
    return LabelledSource(found, list(names) if names else [str(value) for value in values])


def _texts(named: Sequence[tuple[str, dict[str, Any]]], labels: np.ndarray, cfg: DictConfig) -> Labelled:
    text, pair = cfg.columns.text, cfg.columns.text_pair
    texts = [_text(row, name, "dataset.columns.text", text) for name, row in named]
    if pair is None:
        return Labelled(texts, None, labels)
    return Labelled(texts, [_text(row, name, "dataset.columns.text_pair", pair) for name, row in named], labels)


def _label(row: dict[str, Any], name: str, cfg: DictConfig) -> Any:
    column = cfg.columns.label
    if column not in row:
        raise UserError(f"{name} has no field {column!r} (dataset.columns.label={column}); it has: {', '.join(row)}.")
    return row[column]


def _text(row: dict[str, Any], name: str, key: str, column: str) -> str:
    text = text_field(row, name, key, column)
    if not text.strip():
        raise UserError(f"{name}: the field {column!r} is empty.")
    return text
