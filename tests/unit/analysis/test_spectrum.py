"""Measures of an update ΔW, against values worked out by hand."""

import math

import pytest
import torch
from scipy.fft import idct

from foura.analysis import spectrum


def test_a_diagonal_update() -> None:
    delta = torch.diag(torch.tensor([4.0, 2.0, 2.0, 0.0]))
    values = spectrum.svd(delta).S
    assert values.tolist() == pytest.approx([4, 2, 2, 0])
    assert spectrum.stable_rank(values) == pytest.approx((16 + 4 + 4) / 16)
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert spectrum.entropy_rank(values) == pytest.approx(math.exp(entropy))
    assert spectrum.spread(values, 3) == pytest.approx(math.sqrt((16 + 4 + 4) / 3 - (8 / 3) ** 2) / (8 / 3))


def test_a_zero_update_does_not_divide_by_zero() -> None:
    zero = torch.zeros(5, 3)
    values = spectrum.svd(zero).S
    assert spectrum.stable_rank(values) == spectrum.entropy_rank(values) == spectrum.spread(values, 2) == 0.0
    assert spectrum.amplification(torch.ones(5, 3), zero, spectrum.svd(zero), 2) == 0.0
    assert spectrum.overlap(zero, torch.ones(5, 3), 2) == spectrum.low_frequency_share(zero) == 0.0


def test_amplification_of_directions_that_the_weight_has() -> None:
    weight = torch.diag(torch.tensor([10.0, 1.0, 1.0]))
    along, across = torch.diag(torch.tensor([2.0, 0.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0, 0.0]))
    assert spectrum.amplification(weight, along, spectrum.svd(along), 1) == pytest.approx(0.2)
    assert spectrum.amplification(weight, across, spectrum.svd(across), 1) == pytest.approx(2.0)


def test_overlap_of_the_same_and_of_orthogonal_updates() -> None:
    first, second = torch.zeros(6, 6), torch.zeros(6, 6)
    first[:2, :2], second[3:5, 3:5] = torch.randn(2, 2), torch.randn(2, 2)
    assert spectrum.overlap(first, first, 2) == pytest.approx(1.0)
    assert spectrum.overlap(first, second, 2) == pytest.approx(0.0, abs=1e-12)


def test_low_frequencies() -> None:
    low = torch.from_numpy(idct([1.0, 0, 0, 0, 0, 0, 0, 0], norm="ortho")).expand(3, -1)
    high = torch.from_numpy(idct([0.0, 0, 0, 0, 0, 0, 0, 1], norm="ortho")).expand(3, -1)
    assert spectrum.low_frequency_share(low) == pytest.approx(1.0)
    assert spectrum.low_frequency_share(high) == pytest.approx(0.0, abs=1e-12)
    assert spectrum.low_frequency_share(torch.randn(200, 64)) == pytest.approx(0.5, abs=0.03)


def test_large_matrices_keep_their_leading_values(monkeypatch) -> None:
    delta = torch.randn(90, 6) @ torch.randn(6, 70)
    exact = spectrum.svd(delta).S[:6]
    monkeypatch.setattr(spectrum, "EXACT", 50)
    monkeypatch.setattr(spectrum, "LEADING", 16)
    torch.testing.assert_close(spectrum.svd(delta).S[:6], exact)


@pytest.mark.parametrize("directions", [3, 6, 14])
def test_an_update_of_low_rank_is_decomposed_by_its_own_directions(directions) -> None:
    """6 is twice the rank that is told, as of PiSSA; 14 is what as many random combinations just span."""
    delta = (torch.randn(90, directions) @ torch.randn(directions, 70)).float()
    whole, found = spectrum.svd(delta), spectrum.svd(delta, rank=3)
    assert found.S.shape == (14,) and whole.S.shape == (70,)
    torch.testing.assert_close(found.S[:directions], whole.S[:directions])
    torch.testing.assert_close((found.U * found.S) @ found.V.T, delta.double(), rtol=0, atol=1e-4)
    assert float(found.S[directions:].sum()) < 1e-4 * float(found.S.sum())


def test_an_update_of_more_directions_than_told_is_decomposed_as_a_whole() -> None:
    delta = torch.randn(90, 15) @ torch.randn(15, 70)
    assert spectrum.svd(delta, rank=3).S.tolist() == spectrum.svd(delta).S.tolist()
    nearly = torch.randn(90, 3) @ torch.randn(3, 70) + 1e-3 * torch.randn(90, 70)
    assert spectrum.svd(nearly, rank=3).S.shape == (70,)
