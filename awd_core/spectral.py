"""Rows of a matrix rotated into the left singular basis of the summed task vectors.

T = sum_k tau_k = U S V^T. Row r of U^T tau_k is what expert k does along the r-th direction that
the experts share; AWD works on these rows as it does on the matrix's own at granularity `row`, and
delta is rotated back: delta = U D, D_r = sum_k c_rk (U^T tau_k)_r. The signs of singular vectors
cancel. U is not kept: it would be as large as the model. It is computed again when delta is needed.

One matrix at a time is in memory, in float64: its sum, one task vector, and min(rows, columns)
rotated rows of every expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from awd_core.checkpoints import Checkpoint, StoredTensor
from awd_core.lazy import torch
from awd_core.stream import chunks

# Directions whose singular value is below this share of the largest one are rounding: any basis of
# them is as good as any other. delta is 0 there, and so is their part of the merge.
NEGLIGIBLE = 1e-6


def spectral_grams(tensor: StoredTensor, experts: Sequence[Checkpoint], device: str) -> np.ndarray:
    """Gram of every rotated row, `G[r, i, j] = <(U^T tau_i)_r, (U^T tau_j)_r>`, (r, K, K) float64.

    r = min(rows, columns), in falling order of singular values; 0 in negligible directions. The sum
    over r is the Gram of the parts of tau_k that lie in the span of U.

    Cost: two readings of the experts and an eigendecomposition of size r.
    """
    basis, negligible = _left_basis(tensor, experts, device)
    return rotated_grams(basis, negligible, matrices(tensor, experts, device))


def rotated_grams(
    basis: torch.Tensor, negligible: torch.Tensor, vectors: Iterable[torch.Tensor]
) -> np.ndarray:
    """The same from a basis and the matrices tau_k."""
    rotated = torch.stack([basis.T @ tau for tau in vectors], dim=1)
    grams = torch.bmm(rotated, rotated.transpose(1, 2))
    grams = torch.tril(grams) + torch.tril(grams, -1).transpose(1, 2)
    grams[negligible] = 0.0
    return grams.cpu().numpy()


def spectral_redundant(
    tensor: StoredTensor, experts: Sequence[Checkpoint], device: str, c: np.ndarray
) -> torch.Tensor:
    """`delta = U D` with `D_r = sum_k c_rk (U^T tau_k)_r`, (rows, columns) float64.

    Args:
        tensor: The base's tensor.
        experts: The experts, in order.
        device: Where to compute.
        c: Span coefficients, (r, K).
    """
    basis, _ = _left_basis(tensor, experts, device)
    coefficients = torch.from_numpy(np.ascontiguousarray(c.T)).to(device)[:, :, None]
    rotated = torch.zeros((basis.shape[1], tensor.matrix_shape[1]), dtype=basis.dtype).to(device)
    for of_expert, tau in zip(coefficients, matrices(tensor, experts, device), strict=True):
        rotated += of_expert * (basis.T @ tau)
    return basis @ rotated


def left_basis(total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U of T = U S V^T, (rows, r), r = min(rows, columns), and which directions are negligible."""
    rows, columns = total.shape
    if rows <= columns:
        squares, basis = torch.linalg.eigh(total @ total.T)
    else:
        squares, right = torch.linalg.eigh(total.T @ total)
        # T v = s u; QR makes the short ones orthogonal, which rounding has left skew.
        basis, _ = torch.linalg.qr(total @ right.flip(1))
        basis = basis.flip(1)
    squares, basis = squares.flip(0), basis.flip(1)
    return basis, squares <= NEGLIGIBLE**2 * squares[0].clamp(min=0)


def _left_basis(
    tensor: StoredTensor, experts: Sequence[Checkpoint], device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = matrices(tensor, experts, device)
    total = next(vectors).clone()
    for tau in vectors:
        total += tau
    return left_basis(total)


def matrices(
    tensor: StoredTensor, experts: Sequence[Checkpoint], device: str
) -> Iterator[torch.Tensor]:
    """tau_k of the whole matrix, expert by expert, (rows, columns) float64."""
    for expert in experts:
        yield torch.cat([chunk.task_vectors[0] for chunk in chunks(tensor, [expert], device)])
