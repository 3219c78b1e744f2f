"""The transform F on the embedding axis, in the folded form (paper sec. 3.2 and 3.3): one class each, in `TRANSFORMS`.

FouRA is written on activations, y = F⁻¹ B (A F x). F is linear and acts on the feature axis alone, so it can be moved
onto the small factors: y = (F⁻¹B)(A F) x. A transform does both, and nothing else in the project knows about bases.

    shapes   r rank (of one layer, or of many stacked) · N in_features · M out_features · s splits · m block (M / s)
             q rows of the folded A (r · parts)

To add a transform, subclass `Transform` with an orthonormal `basis` and register it: `TRANSFORMS["haar"] = Haar`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foura.adapter.constants import constant
from foura.adapter.dct import dct, dct_basis, inverse_dct
from foura.adapter.tracing import exported

# Above this length an FFT is cheaper than a product with the basis matrix, which would also take N² floats. On a GPU launches
# count more than operations, and a product is one launch: for few rows it is used up to a larger length.
MATRIX_LIMIT = 512
MATRIX_LIMIT_CUDA = 1024
MATRIX_LIMIT_CUDA_FEW = 4096  # 64 MiB of float32
MOST_WORK_CUDA = 2**31  # multiplications of such a product


@dataclass(frozen=True)
class Transform:
    """F for inputs of N features and F⁻¹ for outputs of M features, the latter cut into `splits` equal blocks.

    This class is a complete real transform for any orthonormal `basis`; subclasses with a fast algorithm override more.

    Args:
        seed: of a random basis.

    Raises:
        ValueError: `splits` does not divide M.
    """

    in_features: int
    out_features: int
    splits: int = 1
    seed: int = 0

    parts: ClassVar[int] = 1  # real coordinates per rank; 2 for complex coefficients

    def __post_init__(self) -> None:
        if self.splits < 1 or self.out_features % self.splits:
            raise ValueError(
                f"{self.out_features} features cannot be cut into {self.splits} equal blocks; check output_splits"
            )

    @staticmethod
    def basis(length: int, seed: int) -> Tensor:
        """F as a float64 matrix (length, length) with F Fᵀ = 1; row k is the k-th basis function."""
        raise NotImplementedError

    @property
    def block(self) -> int:
        """Features per output block."""
        return self.out_features // self.splits

    # -- parameters

    def shape_A(self, rank: int) -> tuple[int, ...]:
        """Shape of the trained A: (r, N), or (r, bins, 2) as a real view of complex coefficients."""
        return (rank, self.in_features)

    def shape_B(self, rank: int) -> tuple[int, ...]:
        """Shape of the trained B: (M, r), or (splits · bins, r, 2)."""
        return (self.out_features, rank)

    # -- on the factors: each rank by itself, so that any number of layers can be stacked along it

    def fold_down(self, A: Tensor) -> Tensor:
        """A·F as a real matrix (q, N)."""
        return self.inverse(A)

    def fold_up(self, B: Tensor) -> Tensor:
        """F⁻¹·B as a real matrix (M, q); the inverse acts on each output block separately (fused projections)."""
        return self._on_blocks(self.inverse, B)

    def fold_down_adjoint(self, grad: Tensor) -> Tensor:
        """Gradient of A, given the gradient (q, N) of `fold_down(A)`."""
        return self.forward(grad)

    def fold_up_adjoint(self, grad: Tensor) -> Tensor:
        """Gradient of B, given the gradient (M, q) of `fold_up(B)`."""
        return self._on_blocks(self.forward, grad)

    # -- F itself

    def forward(self, rows: Tensor) -> Tensor:
        """F applied to each row, rows @ Fᵀ; shape kept, any length."""
        return rows @ self._matrix(rows.shape[-1], rows).T

    def inverse(self, rows: Tensor) -> Tensor:
        """F⁻¹ applied to each row, rows @ F; shape kept, any length."""
        return rows @ self._matrix(rows.shape[-1], rows)

    def _matrix(self, length: int, like: Tensor) -> Tensor:
        return basis_matrix(type(self), length, self.seed, like.dtype, like.device)

    def _on_blocks(self, transform: Callable[[Tensor], Tensor], B: Tensor) -> Tensor:
        """`transform` on each output block of each column of B (M, r); the result is a transposed view of (r, M)."""
        return transform(B.T.reshape(-1, self.block)).reshape(-1, self.out_features).T


class DCT(Transform):
    """Orthonormal DCT-II, the paper's default for real factors (sec. 3.3): by a matrix when short, by FFT when long."""

    @staticmethod
    def basis(length: int, seed: int) -> Tensor:
        return dct_basis(length)

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) if _is_short(rows) else dct(rows)

    def inverse(self, rows: Tensor) -> Tensor:
        return super().inverse(rows) if _is_short(rows) else inverse_dct(rows)


def _is_short(rows: Tensor) -> bool:
    length = rows.shape[-1]
    if not rows.is_cuda:
        return length <= MATRIX_LIMIT
    few = length <= MATRIX_LIMIT_CUDA_FEW and rows.numel() * length <= MOST_WORK_CUDA
    return few or length <= MATRIX_LIMIT_CUDA


class DFT(Transform):
    """DFT by rfft and irfft (norm="ortho") with complex A and B, kept as real views with a last axis of 2 (sec. 3.3).

    A is (r, N//2+1, 2) and B (splits · (m//2+1), r, 2). z = A rfft(x) is complex, so the folded factors have q = 2r rows:
    Re z, then Im z. Where a graph is exported, the factors are folded by cosines and sines: ONNX has no complex numbers.
    """

    parts: ClassVar[int] = 2

    def shape_A(self, rank: int) -> tuple[int, ...]:
        return (rank, self.in_features // 2 + 1, 2)

    def shape_B(self, rank: int) -> tuple[int, ...]:
        return (self.splits * (self.block // 2 + 1), rank, 2)

    def fold_down(self, A: Tensor) -> Tensor:
        if exported():
            (cos_KN, sin_KN), (real_rK, imag_rK) = _waves(self.in_features, A.dtype, A.device).unbind(), A.unbind(-1)
            return torch.cat([real_rK @ cos_KN + imag_rK @ sin_KN, imag_rK @ cos_KN - real_rK @ sin_KN])
        # sum_k A[k] exp(-2πikn/N) / sqrt(N): a forward FFT of the coefficients, the missing upper half being zero
        folded_rN = torch.fft.fft(torch.view_as_complex(A.contiguous()), n=self.in_features, norm="ortho")
        return torch.cat([folded_rN.real, folded_rN.imag])

    def fold_up(self, B: Tensor) -> Tensor:
        weights_K = _bin_weights(self.block, B.dtype, B.device)
        if exported():
            cos_Km, sin_Km = _waves(self.block, B.dtype, B.device).unbind()
            rows_RK2 = B.transpose(0, 1).reshape(-1, len(weights_K), 2)  # R = r · s
            real_RK, imag_RK = (rows_RK2 * weights_K[:, None]).unbind(-1)
            real_Rm, imag_Rm = real_RK @ cos_Km - imag_RK @ sin_Km, imag_RK @ cos_Km + real_RK @ sin_Km
            return torch.cat([real_Rm, -imag_Rm]).reshape(-1, self.out_features).T
        spectrum_RK = torch.view_as_complex(B.contiguous()).T.reshape(-1, len(weights_K))
        # irfft(c) = Re( sum_k w_k c_k exp(2πikn/M) ) / sqrt(M)
        folded_Rm = torch.fft.ifft(spectrum_RK * weights_K, n=self.block, norm="ortho")
        return torch.cat([folded_Rm.real, folded_Rm.imag.neg()]).reshape(-1, self.out_features).T

    def fold_down_adjoint(self, grad: Tensor) -> Tensor:
        real_rN, imag_rN = grad.chunk(2)
        spectrum_rN = torch.fft.ifft(torch.complex(real_rN, imag_rN), norm="ortho")
        return torch.view_as_real(spectrum_rN[:, : self.in_features // 2 + 1].contiguous())

    def fold_up_adjoint(self, grad: Tensor) -> Tensor:
        real_Rm, minus_imag_Rm = grad.T.reshape(-1, self.block).chunk(2)
        spectrum_Rm = torch.fft.fft(torch.complex(real_Rm, -minus_imag_Rm), norm="ortho")
        weighted = spectrum_Rm[:, : self.block // 2 + 1] * _bin_weights(self.block, grad.dtype, grad.device)
        return torch.view_as_real(weighted.view(-1, self.shape_B(1)[0]).T)


class Identity(Transform):
    """F = 1: plain LoRA, a control."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows

    def inverse(self, rows: Tensor) -> Tensor:
        return rows

    def fold_up(self, B: Tensor) -> Tensor:
        return B

    def fold_up_adjoint(self, grad: Tensor) -> Tensor:
        return grad


class RandomBasis(Transform):
    """A random orthonormal basis, a control: does frequency matter, or would any other basis do?"""

    @staticmethod
    def basis(length: int, seed: int) -> Tensor:
        noise = torch.randn(length, length, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(seed))
        Q, R = torch.linalg.qr(noise)
        return Q * R.diagonal().sign()  # QR leaves the signs free; this makes the basis uniform and reproducible


# The choices of `FouraConfig.transform`; the first is the default.
TRANSFORMS: dict[str, type[Transform]] = {"dct": DCT, "dft": DFT, "identity": Identity, "random": RandomBasis}


@constant
def basis_matrix(
    transform: type[Transform], length: int, seed: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`transform.basis(length, seed)` in this dtype on this device."""
    return transform.basis(length, seed).to(dtype=dtype, device=device)


@constant
def _bin_weights(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Number of bins of the full spectrum per bin of the half spectrum: 2, but 1 for DC and Nyquist."""
    weights_K = torch.full((length // 2 + 1,), 2.0, dtype=dtype)
    weights_K[0] = 1.0
    if length % 2 == 0:
        weights_K[-1] = 1.0
    return weights_K.to(device)


@constant
def _waves(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, K, length): cosine and sine of 2πkn / length, divided by sqrt(length), for the K bins of the half spectrum."""
    n = torch.arange(length, dtype=torch.float64)
    angle_KN = n[: length // 2 + 1, None] * n % length * (2 * math.pi / length)
    return (torch.stack([angle_KN.cos(), angle_KN.sin()]) / math.sqrt(length)).to(dtype=dtype, device=device)
