"""Spectrum of an update ΔW: singular values, effective ranks, overlap with the weight W and with other updates.

Pure functions of matrices; ΔW and W are (out_features, in_features).
"""

from typing import NamedTuple

import torch
from scipy.fft import dct
from torch import Tensor

EXACT = 1024  # shorter side of a matrix up to which all its singular values are computed
LEADING = 256  # singular values of larger matrices, by a randomised SVD: more than the rank of an update
LOW_RANK = 1e-6  # of ‖ΔW‖_F: what a matrix may have outside of few directions to count as one of low rank


class Svd(NamedTuple):
    """Singular vectors U (out, k) and V (in, k), and values S (k,), largest first, in float64."""

    U: Tensor
    S: Tensor
    V: Tensor


def svd(delta: Tensor, rank: int | None = None) -> Svd:
    """The singular value decomposition of ΔW: whole, or the 256 leading directions if both sides are above 1024.

    Args:
        rank: of the adapter that made ΔW. Where ΔW does have so few directions (LoRA's and FouRA's), or twice as many (PiSSA
            takes as many out of the frozen weight), the decomposition is of those alone, and much faster.
    """
    if rank is not None and (found := _of_low_rank(delta.double(), 2 * rank + 8)) is not None:
        return found
    if min(delta.shape) <= EXACT:
        U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
        return Svd(U, S, Vh.T)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # svd_lowrank draws random directions
        return Svd(*torch.svd_lowrank(delta.double(), q=LEADING, niter=4))


def _of_low_rank(delta: Tensor, directions: int) -> Svd | None:
    """The decomposition of a matrix whose range so many random combinations of its columns span, or None of another."""
    if 2 * directions > min(delta.shape):
        return None
    drawn = torch.randn(delta.shape[1], directions, generator=torch.Generator().manual_seed(0), dtype=delta.dtype)
    basis = torch.linalg.qr(delta @ drawn).Q
    inside = basis.T @ delta
    size = delta.square().sum()
    if not float(size - inside.square().sum()) <= LOW_RANK**2 * float(size):
        return None
    U, S, Vh = torch.linalg.svd(inside, full_matrices=False)
    return Svd(basis @ U, S, Vh.T)


def spread(values: Tensor, rank: int) -> float:
    """Spread of the `rank` largest singular values (paper Fig. 4): their standard deviation over their mean."""
    top = values[:rank].double()
    return float(top.std(correction=0) / top.mean()) if float(top.mean()) > 0 else 0.0


def entropy_rank(values: Tensor) -> float:
    """Effective rank exp(H(σ / Σσ)) (Roy and Vetterli, 2007): 1 for one direction, n for n equal singular values."""
    shares = values.double() / values.double().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.exp(torch.special.entr(shares).sum())) if float(values.sum()) > 0 else 0.0


def stable_rank(values: Tensor) -> float:
    """Stable rank ‖ΔW‖²_F / ‖ΔW‖²₂: the number of directions that carry the energy."""
    squares = values.double().square()
    return float(squares.sum() / squares.max()) if float(squares.max()) > 0 else 0.0


def amplification(weight: Tensor, delta: Tensor, directions: Svd, rank: int) -> float:
    """‖ΔW‖_F / ‖Uᵀ W V‖_F with U, V the `rank` leading singular directions of ΔW.

    Large if the update strengthens directions that W hardly has (paper Table B.1; Hu et al., arXiv 2106.09685, sec. 7.3).
    """
    U, S, V = directions
    if float(S.max()) == 0:
        return 0.0
    seen = torch.linalg.matrix_norm(U[:, :rank].T @ weight.double() @ V[:, :rank])
    return float(torch.linalg.matrix_norm(delta.double()) / seen)


def overlap(first: Tensor, second: Tensor, rank: int) -> float:
    """‖U2ᵀ ΔW1 V2‖_F / ‖ΔW1‖_F with U2, V2 the `rank` leading singular directions of ΔW2 (paper Table B.2, normalised).

    0: orthogonal subspaces, so that the updates can be added; 1: the same subspace.
    """
    U, _, V = svd(second, rank)
    size = torch.linalg.matrix_norm(first.double())
    seen = torch.linalg.matrix_norm(U[:, :rank].T @ first.double() @ V[:, :rank])
    return float(seen / size) if float(size) > 0 else 0.0


def low_frequency_share(delta: Tensor) -> float:
    """Share of ΔW's energy in the lower half of the DCT-II frequencies of the input axis; 0.5 for white noise."""
    size = delta.shape[1]
    energy = torch.from_numpy(dct(delta.double().numpy(), axis=1, norm="ortho")).square().sum(0)
    return float(energy[: size // 2].sum() / energy.sum()) if float(energy.sum()) > 0 else 0.0
