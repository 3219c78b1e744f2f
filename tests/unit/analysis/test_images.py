"""Diversity and copying, against values worked out by hand."""

import pytest
import torch

from foura.analysis.images import copy_distance, diversity


def test_diversity_and_copying_by_hand() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 1.0]])
    assert diversity(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(2.5)  # 5 apart, and no distance at all
    with pytest.raises(ValueError, match="at least two"):
        diversity(features, torch.tensor([0, 0, 0, 1]))
    training = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    held_out = torch.tensor([[0.0, 4.0], [10.0, 2.0]])  # 4 and 2 from the nearest
    made = torch.tensor([[0.0, 0.0], [7.0, 0.0]])  # a copy, and 3 away
    assert copy_distance(made, training, held_out) == pytest.approx(1.5 / 3)
