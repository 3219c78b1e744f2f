"""The transform F on the embedding axis, in the folded form (paper sec. 3.2 and 3.3).

FouRA is written on activations, y = F⁻¹ B (A F x). F is linear and acts on the feature axis alone, so it can be moved
onto the small factors: y = (F⁻¹B)(A F) x. The two maps here do that, and nothing else in the project knows about bases.

    shapes   r rank · N in_features · M out_features · q rows of the folded A (r, or 2r for the complex DFT)
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

TRANSFORMS = ("dct", "dft", "identity", "random")

# Above this length an FFT is cheaper than a product with the basis matrix, which would also take N² floats.
MATRIX_LIMIT = 1024


def coefficient_shape(transform: str, length: int, splits: int = 1) -> tuple[int, ...]:
    """Shape of one rank's coefficients for an axis of `length` features cut into `splits` equal blocks.

    (length,) for the real transforms; (splits * (block // 2 + 1), 2) for `dft`, the last axis being real and imaginary.

    Raises:
        ValueError: unknown transform, or a length that the splits do not divide.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"transform={transform!r} is not known; choose one of {', '.join(TRANSFORMS)}")
    if splits < 1 or length % splits:
        raise ValueError(f"{length} features cannot be cut into {splits} equal blocks; check output_splits")
    if transform == "dft":
        return (splits * (length // splits // 2 + 1), 2)
    return (length,)


def fold_down(A: Tensor, transform: str, length: int, seed: int = 0) -> Tensor:
    """A·F as a real matrix (q, N): A is (r, N), or (r, N//2+1, 2) for `dft`.

    For `dft`, z = A rfft(x) is complex; the rows of the result are Re z, then Im z.
    """
    if transform != "dft":
        return _synthesise(A, transform, seed)
    spectrum_rK = torch.view_as_complex(A.contiguous())
    # sum_k A[k] exp(-2πikn/N) / sqrt(N): a forward FFT of the coefficients, the missing upper half being zero
    folded_rN = torch.fft.fft(spectrum_rK, n=length, norm="ortho")
    return torch.cat([folded_rN.real, folded_rN.imag])


def fold_up(B: Tensor, transform: str, length: int, splits: int = 1, seed: int = 0) -> Tensor:
    """F⁻¹·B as a real matrix (M, q): B is (M, r), or (splits * (block//2+1), r, 2) for `dft`.

    With `splits` > 1 the inverse transform acts on each equal block of the outputs by itself (fused projections).
    """
    block = length // splits
    if transform != "dft":
        rank = B.shape[-1]
        blocks_srm = B.reshape(splits, block, rank).transpose(1, 2)
        return _synthesise(blocks_srm, transform, seed).transpose(1, 2).reshape(length, rank)
    spectrum_sKr = torch.view_as_complex(B.contiguous()).unflatten(0, (splits, block // 2 + 1))
    # irfft(c) = Re( sum_k w_k c_k exp(2πikn/N) ) / sqrt(N): every bin but DC and Nyquist stands for two
    weights_K = torch.full((block // 2 + 1,), 2.0, dtype=B.dtype, device=B.device)
    weights_K[0] = 1.0
    if block % 2 == 0:
        weights_K[-1] = 1.0
    folded_smr = torch.fft.ifft(spectrum_sKr * weights_K[:, None], n=block, dim=1, norm="ortho")
    return torch.cat([folded_smr.real, -folded_smr.imag], dim=-1).reshape(length, -1)


def _synthesise(rows: Tensor, transform: str, seed: int) -> Tensor:
    """rows @ F for an orthonormal real F; the same as F⁻¹ applied to each row. Shape kept, last axis transformed."""
    length = rows.shape[-1]
    if transform == "identity":
        return rows
    if transform == "dct" and length > MATRIX_LIMIT:
        return _inverse_dct(rows)
    return rows @ basis(transform, length, seed, rows.dtype, rows.device)


@lru_cache(maxsize=64)
def basis(transform: str, length: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal matrix F (N, N) of a real transform; row k is the k-th basis vector.

    A function cache and not a module buffer, so that no matrix ever enters a checkpoint.
    """
    with torch.inference_mode(False), torch.no_grad():  # a cached inference tensor could not be used in training
        if transform == "dct":
            n = torch.arange(length, dtype=torch.float64)
            F = torch.cos(math.pi / length * (n[None, :] + 0.5) * n[:, None]) * math.sqrt(2.0 / length)
            F[0] /= math.sqrt(2.0)
        elif transform == "random":
            noise = torch.randn(length, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            Q, R = torch.linalg.qr(noise)
            F = Q * R.diagonal().sign()  # QR leaves the signs free; this makes the basis uniform and reproducible
        else:
            raise ValueError(f"transform={transform!r} has no real basis matrix")
        return F.to(dtype=dtype, device=device)


def _inverse_dct(rows: Tensor) -> Tensor:
    """Inverse of the orthonormal DCT-II along the last axis by one complex FFT of the same length (Makhoul 1980)."""
    N = rows.shape[-1]
    k = torch.arange(N, dtype=rows.dtype, device=rows.device)
    scale = torch.full((N,), math.sqrt(2.0 * N), dtype=rows.dtype, device=rows.device)
    scale[0] = 2.0 * math.sqrt(N)
    phase = torch.polar(torch.full_like(k, 0.5), math.pi * k / (2 * N))
    X = rows * scale
    mirrored = torch.cat([torch.zeros_like(X[..., :1]), X[..., 1:].flip(-1)], dim=-1)
    v = torch.fft.ifft(torch.complex(X, -mirrored) * phase).real
    # v holds the even samples ascending, then the odd samples descending
    half = (N + 1) // 2
    out = torch.empty_like(v)
    out[..., ::2] = v[..., :half]
    out[..., 1::2] = v[..., half:].flip(-1)
    return out
