"""Labels of every family with classes: the commonest one, and label noise."""

import numpy as np


def wrong_labels(labels: np.ndarray, share: float, classes: int, seed: int) -> np.ndarray:
    """The labels with a share of them replaced by another class, drawn with the seed: only memorisation can fit those.

    Args:
        labels: class indices, int64 (items,).
    """
    generator = np.random.default_rng([seed, 1])
    wrong = generator.permutation(len(labels))[: round(share * len(labels))]
    changed = labels.copy()
    changed[wrong] = (changed[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return changed


def commonest_share(labels: np.ndarray) -> float:
    """The share of the items that have the commonest label, which is the accuracy of always giving that one."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))
