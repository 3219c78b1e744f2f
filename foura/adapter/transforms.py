"""The transform F on the embedding axis, in the folded form (paper sec. 3.2 and 3.3).

FouRA is written on activations, y = F⁻¹ B (A F x). F is linear and acts on the feature axis alone, so it can be moved
onto the small factors: y = (F⁻¹B)(A F) x. `Transform` does both, and nothing else in the project knows about bases.

    shapes   r rank · N in_features · M out_features · q rows of the folded A (r, or 2r for the complex DFT)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

TRANSFORMS = ("dct", "dft", "identity", "random")

# Above this length an FFT is cheaper than a product with the basis matrix, which would also take N² floats.
MATRIX_LIMIT = 512


@dataclass(frozen=True)
class Transform:
    """F for inputs of N features and F⁻¹ for outputs of M features, the latter cut into `splits` equal blocks.

    Coefficients A have shape (r, N) and B (M, r); for `dft` they are real views (r, N//2+1, 2) and
    (splits * (M//splits//2 + 1), r, 2).

    Raises:
        ValueError: unknown kind, or splits that do not divide M.
    """

    kind: str
    in_features: int
    out_features: int
    splits: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in TRANSFORMS:
            raise ValueError(f"transform={self.kind!r} is not known; choose one of {', '.join(TRANSFORMS)}")
        if self.splits < 1 or self.out_features % self.splits:
            raise ValueError(
                f"{self.out_features} features cannot be cut into {self.splits} equal blocks; check output_splits"
            )

    @property
    def parts(self) -> int:
        """Real coordinates a rank: 2 for the complex DFT, else 1."""
        return 2 if self.kind == "dft" else 1

    @property
    def block(self) -> int:
        return self.out_features // self.splits

    def shape_A(self, rank: int) -> tuple[int, ...]:
        return (rank, self.in_features // 2 + 1, 2) if self.kind == "dft" else (rank, self.in_features)

    def shape_B(self, rank: int) -> tuple[int, ...]:
        if self.kind == "dft":
            return (self.splits * (self.block // 2 + 1), rank, 2)
        return (self.out_features, rank)

    def fold_down(self, A: Tensor) -> Tensor:
        """A·F as a real matrix (q, N). For `dft`, z = A rfft(x) is complex; the rows are Re z, then Im z."""
        if self.kind != "dft":
            return self._synthesise(A)
        # sum_k A[k] exp(-2πikn/N) / sqrt(N): a forward FFT of the coefficients, the missing upper half being zero
        folded_rN = torch.fft.fft(torch.view_as_complex(A.contiguous()), n=self.in_features, norm="ortho")
        return torch.cat([folded_rN.real, folded_rN.imag])

    def fold_up(self, B: Tensor) -> Tensor:
        """F⁻¹·B as a real matrix (M, q); the inverse acts on each output block by itself (fused projections)."""
        if self.kind != "dft":
            return self._columns(B, adjoint=False)
        spectrum_sKr = torch.view_as_complex(B.contiguous()).unflatten(0, (self.splits, -1))
        # irfft(c) = Re( sum_k w_k c_k exp(2πikn/M) ) / sqrt(M)
        weighted = spectrum_sKr * _bin_weights(self.block, B.dtype, B.device)[:, None]
        folded_smr = torch.fft.ifft(weighted, n=self.block, dim=1, norm="ortho")
        return torch.cat([folded_smr.real, -folded_smr.imag], dim=-1).reshape(self.out_features, -1)

    def fold_down_adjoint(self, grad: Tensor) -> Tensor:
        """The gradient of A, given that of `fold_down(A)`, (q, N)."""
        if self.kind != "dft":
            return self._analyse(grad)
        real_rN, imag_rN = grad.chunk(2)
        spectrum_rN = torch.fft.ifft(torch.complex(real_rN, imag_rN), norm="ortho")
        return torch.view_as_real(spectrum_rN[:, : self.in_features // 2 + 1].contiguous())

    def fold_up_adjoint(self, grad: Tensor) -> Tensor:
        """The gradient of B, given that of `fold_up(B)`, (M, q)."""
        if self.kind != "dft":
            return self._columns(grad, adjoint=True)
        real_smr, minus_imag_smr = grad.unflatten(0, (self.splits, self.block)).chunk(2, dim=-1)
        spectrum_smr = torch.fft.fft(torch.complex(real_smr, -minus_imag_smr), dim=1, norm="ortho")
        weighted = spectrum_smr[:, : self.block // 2 + 1] * _bin_weights(self.block, grad.dtype, grad.device)[:, None]
        return torch.view_as_real(weighted.flatten(0, 1))

    def analyse(self, x: Tensor) -> Tensor:
        """F x along the last axis: (..., N), or (..., N//2+1) complex for `dft`."""
        return torch.fft.rfft(x, norm="ortho") if self.kind == "dft" else self._analyse(x)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """F⁻¹ along the last axis, block by block: the coefficients that `shape_B` counts, to (..., M)."""
        blocks = spectrum.unflatten(-1, (self.splits, -1))
        if self.kind == "dft":
            return torch.fft.irfft(blocks, n=self.block, norm="ortho").flatten(-2)
        return self._synthesise(blocks).flatten(-2)

    def _columns(self, B: Tensor, adjoint: bool) -> Tensor:
        """F⁻¹ (F for the adjoint) on the columns of every output block of B (M, r)."""
        if self.kind == "identity":
            return B
        blocks_smr = B.unflatten(0, (self.splits, self.block))
        if self.kind == "dct" and self.block > MATRIX_LIMIT:
            rows = blocks_smr.transpose(1, 2).reshape(-1, self.block)  # two axes alone: gathering is slow on three
            rows = _dct(rows) if adjoint else _inverse_dct(rows)
            return rows.unflatten(0, (self.splits, -1)).transpose(1, 2).reshape(B.shape)
        F = basis(self.kind, self.block, self.seed, B.dtype, B.device)
        F = F if adjoint else F.T
        return F @ B if self.splits == 1 else (F @ blocks_smr).flatten(0, 1)

    def _synthesise(self, rows: Tensor) -> Tensor:
        """rows @ F for an orthonormal real F; the same as F⁻¹ applied to each row. Shape kept, last axis transformed."""
        length = rows.shape[-1]
        if self.kind == "identity":
            return rows
        if self.kind == "dct" and length > MATRIX_LIMIT:
            return _inverse_dct(rows)
        return rows @ basis(self.kind, length, self.seed, rows.dtype, rows.device)

    def _analyse(self, rows: Tensor) -> Tensor:
        """rows @ Fᵀ: F applied to each row, and the adjoint of `_synthesise`."""
        length = rows.shape[-1]
        if self.kind == "identity":
            return rows
        if self.kind == "dct" and length > MATRIX_LIMIT:
            return _dct(rows)
        return rows @ basis(self.kind, length, self.seed, rows.dtype, rows.device).T


def _kept(constant: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keeps what a function of constants returns, and has a compiled graph hold the values and not their making.

    A function cache and not a module buffer, so that no matrix ever enters a checkpoint.
    """
    cached = lru_cache(maxsize=64)(constant)

    def look_up(*arguments: Any) -> Tensor:
        return cached(*arguments)

    return wraps(constant)(torch.compiler.assume_constant_result(look_up))


@_kept
def basis(kind: str, length: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal matrix F (N, N) of a real transform; row k is the k-th basis vector."""
    with torch.inference_mode(False), torch.no_grad():  # a cached inference tensor could not be used in training
        if kind == "dct":
            n = torch.arange(length, dtype=torch.float64, device="cpu")
            F = torch.cos(math.pi / length * (n[None, :] + 0.5) * n[:, None]) * math.sqrt(2.0 / length)
            F[0] /= math.sqrt(2.0)
        elif kind == "random":
            noise = torch.randn(
                length, length, dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(seed)
            )
            Q, R = torch.linalg.qr(noise)
            F = Q * R.diagonal().sign()  # QR leaves the signs free; this makes the basis uniform and reproducible
        else:
            raise ValueError(f"transform={kind!r} has no real basis matrix")
        return F.to(dtype=dtype, device=device)


@_kept
def _bin_weights(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How many bins of the full spectrum each bin of the half spectrum stands for: 2, but 1 for DC and Nyquist."""
    with torch.inference_mode(False), torch.no_grad():
        weights_K = torch.full((length // 2 + 1,), 2.0, dtype=dtype)
        weights_K[0] = 1.0
        if length % 2 == 0:
            weights_K[-1] = 1.0
        return weights_K.to(device)


# The DCT-II of N numbers by one real FFT of N numbers (Makhoul 1980), in as few operations as there can be: gather, FFT,
# multiply, gather. With v the even samples ascending and then the odd ones descending, and V = fft(v),
#     X[k] = Re(w[k] V[k]),   X[N-k] = -Im(w[k] V[k]),   w[k] = scale[k] exp(-πik / 2N),   k = 0 .. N//2.
# v is read backwards (v[-n]), which conjugates V and so spares the sign.


def _dct(rows: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last axis."""
    N = rows.shape[-1]
    V = torch.fft.rfft(rows.index_select(-1, _sample_order(N, rows.device)))
    parts = torch.view_as_real(V * _twiddles(N, rows.dtype, rows.device)).flatten(-2)
    return parts.index_select(-1, _coefficient_order(N, rows.device))


def _inverse_dct(rows: Tensor) -> Tensor:
    """Inverse of the orthonormal DCT-II along the last axis."""
    N = rows.shape[-1]
    parts = rows.index_select(-1, _pair_order(N, rows.device)).unflatten(-1, (-1, 2))
    V = torch.view_as_complex(parts) * _inverse_twiddles(N, rows.dtype, rows.device)
    return torch.fft.irfft(V, n=N).index_select(-1, _sample_place(N, rows.device))


def _twiddle(length: int) -> Tensor:
    """conj(w) for k = 0 .. N//2, in double precision."""
    k = torch.arange(length // 2 + 1, dtype=torch.float64, device="cpu")
    scale = torch.full_like(k, math.sqrt(2.0 / length))
    scale[0] = math.sqrt(1.0 / length)
    return torch.polar(scale, math.pi * k / (2 * length))


@_kept
def _twiddles(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return _twiddle(length).to(dtype=dtype.to_complex(), device=device)


@_kept
def _inverse_twiddles(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 / conj(w); the first also makes X[0] of the pair (X[0], X[0]), since there is no X[N]."""
    with torch.inference_mode(False), torch.no_grad():
        inverse = 1.0 / _twiddle(length)
        inverse[0] *= (1.0 - 1.0j) / 2.0
        return inverse.to(dtype=dtype.to_complex(), device=device)


@_kept
def _sample_order(length: int, device: torch.device) -> Tensor:
    """Where v[-n] is found among the samples."""
    with torch.inference_mode(False):
        n = torch.arange(length, device="cpu")
        v = torch.cat([n[::2], n[1::2].flip(0)])
        return torch.cat([v[:1], v[1:].flip(0)]).to(device)


@_kept
def _sample_place(length: int, device: torch.device) -> Tensor:
    """Where the samples are found in v[-n]."""
    with torch.inference_mode(False):
        return _sample_order(length, torch.device("cpu")).argsort().to(device)


@_kept
def _coefficient_order(length: int, device: torch.device) -> Tensor:
    """Where X[k] is found among the pairs (X[k], X[N-k]), k = 0 .. N//2."""
    with torch.inference_mode(False):
        k = torch.arange(length, device="cpu")
        return torch.where(k <= length // 2, 2 * k, 2 * (length - k) + 1).to(device)


@_kept
def _pair_order(length: int, device: torch.device) -> Tensor:
    """Where the pairs (X[k], X[N-k]) are found among X; (X[0], X[0]) for k = 0."""
    with torch.inference_mode(False):
        k = torch.arange(length // 2 + 1, device="cpu")
        return torch.stack([k, (length - k) % length], dim=-1).flatten().to(device)
