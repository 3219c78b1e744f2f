"""Items drawn at random: splits that the data does not bring, cut from train, and the items of a split that count.

Cuts depend on `dataset.split_seed` alone, so that validation and test data are the same for every run; the run's seed then
draws the `dataset.limit` training items.
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from foura.errors import UserError


def missing_shares(found: Container[str], shares: Mapping[str, float]) -> dict[str, float]:
    """{split: share of all items} of the splits to cut from train, because the data does not bring them.

    Args:
        shares: of every split but train, in the order in which they are cut.

    Raises:
        UserError: nothing would be left to train on.
    """
    missing = {name: share for name, share in shares.items() if name not in found}
    if sum(missing.values()) >= 1.0:
        raise UserError("dataset.val_fraction and dataset.test_fraction together must leave items to train on.")
    return missing


def cut_at_random(total: int, counts: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """{"train": …, and each split of `counts`: …}: indices of `total` items, in random order.

    Raises:
        UserError: nothing is left to train on.
    """
    order = np.random.default_rng(seed).permutation(total)
    parts = {}
    for name, count in counts.items():
        parts[name], order = order[:count], order[count:]
    if not len(order):
        raise UserError(f"{total} items are too few to cut into train, validation and test.")
    return {"train": order, **parts}


def cut_by_class(labels: np.ndarray, share: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the rest, indices of the part): every class gives the part its share.

    Args:
        labels: class indices, int64 (items,). name: what a message calls the part.

    Raises:
        UserError: a class with too few items.
    """
    return _by_class(labels, seed, f"cut a {name} split from", {"test_size": share})


def draw_by_class(labels: np.ndarray, limit: int, seed: int, key: str = "dataset.limit") -> np.ndarray:
    """Indices of exactly `limit` items, fewer than there are, with the shares that the classes have.

    Args:
        key: of the config, which says the limit.

    Raises:
        UserError: there are more classes than items to draw.
    """
    counts = np.unique(labels, return_counts=True)[1]
    rest = len(labels) - limit
    # scikit-learn wants every class to be in the rest, too; nobody uses the rest
    if limit >= len(counts) and (rest < len(counts) or counts.min() < 2):
        return _largest_remainders(labels, limit, seed)
    sizes = {"train_size": limit, "test_size": rest}
    return _by_class(labels, seed, f"draw {key} items from", sizes)[0]


def _largest_remainders(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """As `draw_by_class`: every class gives the whole part of its share, and those with the largest remainders one more."""
    generator = np.random.default_rng([seed, 3])
    order = generator.permutation(len(labels))
    counts = np.unique(labels, return_counts=True)[1]
    shares = limit * counts
    taken = shares // len(labels)
    tied = generator.permutation(len(counts))  # of equal remainders, the seed chooses
    more = tied[np.argsort(-(shares % len(labels))[tied], kind="stable")][: limit - taken.sum()]
    taken[more] += 1
    kept = [order[labels[order] == value][:count] for value, count in zip(np.unique(labels), taken, strict=True)]
    return generator.permutation(np.concatenate(kept))


def _by_class(labels: np.ndarray, seed: int, what: str, sizes: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split  # takes a second to import, for images alone

    try:
        rest, part = train_test_split(np.arange(len(labels)), stratify=labels, random_state=seed, **sizes)
    except ValueError as error:
        raise UserError(f"cannot {what} {len(labels)} items by class: {error}") from None
    return rest, part


def some_of(total: int, limit: int, seed: int) -> list[int]:
    """Indices of at most `limit` of `total` items, drawn at random, in their order: the first of a file can be of one class."""
    return sorted(np.random.default_rng([seed, 2]).permutation(total)[:limit].tolist())


def draw_at_random(total: int, limit: int | None, seed: int) -> np.ndarray:
    """Indices of at most `limit` of `total` items, in random order."""
    return np.random.default_rng([seed, 0]).permutation(total)[:limit]


def some_in_order(drawn: np.ndarray, limit: int, seed: int) -> list[int]:
    """Places in `drawn`, in their order, of at most `limit` of its indices.

    Which ones does not depend on the order in which they were drawn, and so not on the seed of that.
    """
    sorted_places = np.argsort(drawn)
    return sorted(sorted_places[some_of(len(drawn), limit, seed)].tolist())
