"""FouRA as the paper writes it (eq. 5): transform the activations, B·(g ⊙ A·), transform back.

Nothing here shares code with the package: the transforms are their defining sums, the DFT is complex arithmetic.
"""

import math

import torch
from torch import Tensor


def dct_matrix(length: int) -> Tensor:
    """Orthonormal DCT-II by its definition, entry by entry (float64)."""
    matrix = torch.empty(length, length, dtype=torch.float64)
    for k in range(length):
        for n in range(length):
            scale = math.sqrt((1 if k == 0 else 2) / length)
            matrix[k, n] = scale * math.cos(math.pi * (2 * n + 1) * k / (2 * length))
    return matrix


def delta(
    x: Tensor, A: Tensor, B: Tensor, out_features: int, transform: str, scaling: float, splits=1, gate=None, basis=None
) -> Tensor:
    """scaling · F⁻¹( B ( g(z) ⊙ z ) ), z = A F x, for x (..., N).

    `gate` maps real rank coordinates (..., r) to gates that broadcast against them; `basis(length)` is F for "random".
    """
    if transform == "dft":
        z = torch.fft.rfft(x, norm="ortho") @ torch.view_as_complex(A).T
        g = 1.0 if gate is None else gate(z.abs())
        blocks = (z * g) @ torch.view_as_complex(B).T
        bins = blocks.shape[-1] // splits
        parts = [torch.fft.irfft(part, n=out_features // splits, norm="ortho") for part in blocks.split(bins, dim=-1)]
        return scaling * torch.cat(parts, dim=-1)
    F = {"dct": dct_matrix, "identity": lambda n: torch.eye(n, dtype=torch.float64), "random": basis}[transform]
    z = (x @ F(x.shape[-1]).T) @ A.T
    g = 1.0 if gate is None else gate(z)
    coefficients = (z * g) @ B.T
    block = out_features // splits
    return scaling * torch.cat([part @ F(block) for part in coefficients.split(block, dim=-1)], dim=-1)


def sequence_gate(u: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """The reconstructed gate of scope "sequence", one sample and one rank at a time: u (S, T, r) -> (S, 1, r)."""
    samples, tokens, rank = u.shape
    gates = torch.empty(samples, 1, rank, dtype=u.dtype)
    for s in range(samples):
        score = torch.stack([_mlp(u[s, t], w_in, b_in, w_out, b_out) for t in range(tokens)])
        for i in range(rank):
            p = torch.softmax(score[:, i], dim=0)
            entropy = -(p * p.log()).sum()
            gates[s, 0, i] = torch.sigmoid(4 - 8 / math.log(16) * (math.log(tokens) - entropy))
    return gates


def token_gate(u: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """The reconstructed gate of scope "token": u (..., r) -> (..., r)."""
    p = torch.sigmoid(_mlp(u, w_in, b_in, w_out, b_out))
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    return torch.sigmoid(8 * entropy / math.log(2) - 4)


def _mlp(u: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    u = u / u.square().mean(-1, keepdim=True).sqrt()
    return torch.tanh(u @ w_in.T + b_in) @ w_out.T + b_out


def form_gate(form: str, scope: str, u: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """Gates of a form other than the entropy, without noise, row by row: u (S, T, r) -> (S, T, r), or (S, 1, r)."""
    score = _mlp(u, w_in, b_in, w_out, b_out)
    score = score if scope == "token" else score.mean(1, keepdim=True)
    gates = []
    for row in score.reshape(-1, score.shape[-1]):
        p = row.exp() / row.exp().sum()
        entropy = -(p * p.log()).sum()
        soft = 1 / (1 + (-row).exp())
        gates.append(
            {
                "sigmoid": soft,
                "hard": (row > 0).to(row.dtype),
                "hard_concrete": (1.2 * soft - 0.1).clamp(0.0, 1.0),
                "softmax": 1 / (1 + (-4 - 8 / math.log(16) * (p.log() + entropy)).exp()),
            }[form]
        )
    return torch.stack(gates).view_as(score)
