"""Spectrum of an update ΔW: singular values, effective ranks, overlap with the weight W and with other updates.

Pure functions of matrices; ΔW and W are (out_features, in_features).
"""

import torch
from scipy.fft import dct
from torch import Tensor

EXACT = 1024  # shorter side of a matrix up to which all its singular values are computed
LEADING = 256  # singular values of larger matrices, by a randomised SVD: more than the rank of an update


def singular_values(delta: Tensor) -> Tensor:
    """Singular values, largest first: all, or the 256 largest of a matrix with both sides above 1024."""
    return _svd(delta)[1]


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


def amplification(weight: Tensor, delta: Tensor, rank: int) -> float:
    """‖ΔW‖_F / ‖Uᵀ W V‖_F with U, V the `rank` leading singular directions of ΔW.

    Large if the update strengthens directions that W hardly has (paper Table B.1; Hu et al., arXiv 2106.09685, sec. 7.3).
    """
    U, S, V = _leading(delta, rank)
    if float(S.max()) == 0:
        return 0.0
    seen = torch.linalg.matrix_norm(U.T @ weight.double() @ V)
    return float(torch.linalg.matrix_norm(delta.double()) / seen)


def overlap(first: Tensor, second: Tensor, rank: int) -> float:
    """‖U2ᵀ ΔW1 V2‖_F / ‖ΔW1‖_F with U2, V2 the `rank` leading singular directions of ΔW2 (paper Table B.2, normalised).

    0: orthogonal subspaces, so that the updates can be added; 1: the same subspace.
    """
    U, _, V = _leading(second, rank)
    size = torch.linalg.matrix_norm(first.double())
    return float(torch.linalg.matrix_norm(U.T @ first.double() @ V) / size) if float(size) > 0 else 0.0


def low_frequency_share(delta: Tensor) -> float:
    """Share of ΔW's energy in the lower half of the DCT-II frequencies of the input axis; 0.5 for white noise."""
    size = delta.shape[1]
    energy = torch.from_numpy(dct(delta.double().numpy(), axis=1, norm="ortho")).square().sum(0)
    return float(energy[: size // 2].sum() / energy.sum()) if float(energy.sum()) > 0 else 0.0


def _leading(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    U, S, V = _svd(delta)
    return U[:, :rank], S[:rank], V[:, :rank]


def _svd(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,), V (in, k)."""
    if min(delta.shape) <= EXACT:
        U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
        return U, S, Vh.T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # svd_lowrank draws random directions
        return torch.svd_lowrank(delta.double(), q=LEADING, niter=4)
