"""The orthonormal DCT-II of N numbers: by its definition as a matrix, and by one real FFT of N numbers (Makhoul 1980).

With v the even samples ascending and then the odd ones descending, and V = fft(v),

    X[k] = Re(w[k] V[k]),   X[N-k] = -Im(w[k] V[k]),   w[k] = scale[k] exp(-πik / 2N),   k = 0 .. N//2.

As few operations as possible: gather, FFT, multiply, gather. v is read backwards (v[-n]), which conjugates V and so
spares the sign.

J. Makhoul, "A fast cosine transform in one and two dimensions", IEEE Trans. ASSP 28(1), 1980.
"""

import math

import torch
from torch import Tensor

from foura.adapter.constants import constant


def dct_basis(length: int) -> Tensor:
    """The DCT-II as a matrix (length, length) in float64; row k is the cosine of frequency k."""
    n = torch.arange(length, dtype=torch.float64)
    F = torch.cos(math.pi / length * (n[None, :] + 0.5) * n[:, None]) * math.sqrt(2.0 / length)
    F[0] /= math.sqrt(2.0)
    return F


def dct(rows: Tensor) -> Tensor:
    """DCT-II along the last axis; float32 or float64, shape kept."""
    N = rows.shape[-1]
    V = torch.fft.rfft(rows.index_select(-1, _sample_order(N, rows.device)))
    pairs = torch.view_as_real(V * _twiddles(N, rows.dtype, rows.device)).flatten(-2)
    return pairs.index_select(-1, _coefficient_order(N, rows.device))


def inverse_dct(rows: Tensor) -> Tensor:
    """Inverse (and transpose) of the DCT-II along the last axis; float32 or float64, shape kept."""
    N = rows.shape[-1]
    pairs = rows.index_select(-1, _pair_order(N, rows.device)).unflatten(-1, (-1, 2))
    V = torch.view_as_complex(pairs) * _inverse_twiddles(N, rows.dtype, rows.device)
    return torch.fft.irfft(V, n=N).index_select(-1, _sample_place(N, rows.device))


def _twiddle(length: int) -> Tensor:
    """conj(w) for k = 0 .. N//2, in double precision."""
    k = torch.arange(length // 2 + 1, dtype=torch.float64)
    scale = torch.full_like(k, math.sqrt(2.0 / length))
    scale[0] = math.sqrt(1.0 / length)
    return torch.polar(scale, math.pi * k / (2 * length))


@constant
def _twiddles(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _twiddle(length).to(dtype=dtype.to_complex(), device=device)


@constant
def _inverse_twiddles(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 / conj(w); the first also makes X[0] of the pair (X[0], X[0]), since there is no X[N]."""
    inverse = 1.0 / _twiddle(length)
    inverse[0] *= (1.0 - 1.0j) / 2.0
    return inverse.to(dtype=dtype.to_complex(), device=device)


def _backward_order(length: int) -> Tensor:
    n = torch.arange(length)
    v = torch.cat([n[::2], n[1::2].flip(0)])
    return torch.cat([v[:1], v[1:].flip(0)])


@constant
def _sample_order(length: int, device: torch.device) -> Tensor:
    """Index of v[-n] among the samples."""
    return _backward_order(length).to(device)


@constant
def _sample_place(length: int, device: torch.device) -> Tensor:
    """Index of each sample in v[-n]."""
    return _backward_order(length).argsort().to(device)


@constant
def _coefficient_order(length: int, device: torch.device) -> Tensor:
    """Index of X[k] among the pairs (X[k], X[N-k]), k = 0 .. N//2."""
    k = torch.arange(length)
    return torch.where(k <= length // 2, 2 * k, 2 * (length - k) + 1).to(device)


@constant
def _pair_order(length: int, device: torch.device) -> Tensor:
    """Indices of the pairs (X[k], X[N-k]) among X; (X[0], X[0]) for k = 0."""
    k = torch.arange(length // 2 + 1)
    return torch.stack([k, (length - k) % length], dim=-1).flatten().to(device)
