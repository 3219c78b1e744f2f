"""The onset of overfitting, against values worked out by hand."""

import pytest

from foura.analysis.overfitting import onset_epoch


def test_onset_is_the_first_epoch_of_the_lowest_loss() -> None:
    assert onset_epoch([0, 1, 2, 3, 4], [2.0, 1.0, 0.5, 0.5, 0.9]) == 2
    assert onset_epoch([1, 3, 5], [3.0, 2.0, 1.0]) == 5
    with pytest.raises(ValueError, match="one validation loss per epoch"):
        onset_epoch([], [])
