"""Label noise and the commonest label, by hand."""

import numpy as np

from foura.data.labels import commonest_share, wrong_labels


def test_the_share_is_wrong_and_depends_on_the_seed() -> None:
    labels = np.arange(100) % 4
    noisy = wrong_labels(labels, 0.3, 4, seed=0)
    assert (noisy != labels).sum() == 30 and set(noisy) == {0, 1, 2, 3}
    assert (wrong_labels(labels, 0.3, 4, seed=0) == noisy).all()
    assert (wrong_labels(labels, 0.3, 4, seed=1) != noisy).any()
    assert (labels == np.arange(100) % 4).all()  # the clean ones are not changed


def test_the_share_of_the_commonest_label() -> None:
    assert commonest_share(np.array([2, 0, 2, 1, 2])) == 0.6
