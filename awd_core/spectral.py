"""Rows of a matrix rotated into the left singular basis of the summed task vectors.

T = sum_k tau_k = U S V^T. Row r of U^T tau_k is what expert k does along the r-th direction that
the experts share; AWD works on these rows as it does on the matrix's own at granularity `row`, and
delta is rotated back: delta = U D, D_r = sum_k c_rk (U^T tau_k)_r. The signs of singular vectors
cancel. U is not kept: it would be as large as the model. It is computed again when delta is needed.

One matrix at a time is in memory, in float64: its sum, one task vector, and min(rows, columns)
rotated rows of every expert.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from awd_core.arrays import Array, falling, namespace, numpy_in_one_thread, on_host
from awd_core.checkpoints import Checkpoint, StoredTensor
from awd_core.checkpoints.estimate import free_memory
from awd_core.common_bases import in_common_bases
from awd_core.lazy import torch
from awd_core.stream import chunks

# Directions whose singular value is below this share of the largest one are rounding: any basis of
# them is as good as any other. delta is 0 there, and so is their part of the merge.
NEGLIGIBLE = 1e-6


def spectral_grams(tensor: StoredTensor, experts: Sequence[Checkpoint], device: str) -> np.ndarray:
    """Gram of every rotated row, `G[r, i, j] = <(U^T tau_i)_r, (U^T tau_j)_r>`, (r, K, K) float64.

    r = min(rows, columns), in falling order of singular values; 0 in negligible directions. The sum
    over r is the Gram of the parts of tau_k that lie in the span of U.

    Cost: two readings of the experts and an eigendecomposition of size r; of LoRA experts only
    decompositions of the size of their ranks.
    """
    with numpy_in_one_thread():
        small = in_common_bases(tensor, experts)
        if small is not None:
            grams = rotated_grams(left_basis(small.vectors.sum(0)), small.vectors)
            return padded(grams, min(tensor.matrix_shape))
        basis = _left_basis(tensor, experts, device)
        return rotated_grams(basis, matrices(tensor, experts, device))


def workers(tensors: Iterable[StoredTensor], n_experts: int, device: str) -> int:
    """How many matrices may be worked on beside one another, each in one thread.

    As many as there are cores, and as half of the free memory holds: of the largest matrix all
    task vectors, as they are and rotated, and a few more of its size. One at a time on a GPU.
    """
    if device != "cpu":
        return 1
    largest = max((tensor.n_elements for tensor in tensors), default=0)
    needed, free = 8 * (2 * n_experts + 4) * largest, free_memory()
    most = os.cpu_count() or 1
    return most if not needed or free is None else max(1, min(most, free // 2 // needed))


def rotated_grams(basis: Array, vectors: Iterable[Array]) -> np.ndarray:
    """The same from a basis and the matrices tau_k."""
    rotated = namespace(basis).stack([basis.T @ tau for tau in vectors])
    grams = on_host(rotated.swapaxes(0, 1) @ rotated.swapaxes(0, 1).mT)
    return np.tril(grams) + np.tril(grams, -1).swapaxes(1, 2)


def padded(grams: np.ndarray, side: int) -> np.ndarray:
    """The same with zeros for the directions, up to `side`, in which nobody moves."""
    return np.pad(grams, ((0, side - len(grams)), (0, 0), (0, 0)))


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
    small = in_common_bases(tensor, experts)
    if small is None:
        basis = _left_basis(tensor, experts, device)
        return torch.as_tensor(_rotated_back(basis, matrices(tensor, experts, device), c))
    inner = _rotated_back(left_basis(small.vectors.sum(0)), small.vectors, c)
    return torch.as_tensor(small.left @ inner @ small.right.T).to(device)


def _rotated_back(basis: Array, vectors: Iterable[Array], c: np.ndarray) -> Array:
    """U D with `D_r = sum_k c_rk (U^T tau_k)_r`, over the directions of the basis."""
    own = c.T[:, : basis.shape[1]]
    coefficients = namespace(basis).asarray(own, device=basis.device)[:, :, None]
    parts = zip(coefficients, vectors, strict=True)
    return basis @ sum(of_expert * (basis.T @ tau) for of_expert, tau in parts)


def left_basis(total: Array) -> Array:
    """U of T = U S V^T, (rows, r), r = min(rows, columns); zero in negligible directions."""
    rows, columns = total.shape
    xp = namespace(total)
    short = total if rows <= columns else total.T
    squares, vectors = falling(*xp.linalg.eigh(short @ short.T))
    kept = squares > NEGLIGIBLE**2 * squares[0]
    if rows <= columns:
        return vectors * kept
    # T v = s u. Rounding leaves the u of small s skew, as T^T T knows s^2 to 1e-16 of the largest.
    basis = total @ (vectors * kept / xp.sqrt(xp.where(kept, squares, 1.0)))
    return basis @ _orthonormalising(basis, kept)


def _orthonormalising(basis: Array, kept: Array) -> Array:
    """R^-1 with `basis = Q R`: by a Cholesky factor, exact enough as the basis is nearly Q."""
    xp = namespace(basis)
    squares = basis.T @ basis + xp.diag(xp.where(kept, 0.0, 1.0))
    return xp.linalg.inv(xp.linalg.cholesky(squares)).T


def _left_basis(tensor: StoredTensor, experts: Sequence[Checkpoint], device: str) -> Array:
    return left_basis(sum(matrices(tensor, experts, device)))


def matrices(tensor: StoredTensor, experts: Sequence[Checkpoint], device: str) -> Iterator[Array]:
    """tau_k of the whole matrix, expert by expert, (rows, columns) float64."""
    for expert in experts:
        parts = [chunk.widened[1][0] for chunk in chunks(tensor, [expert], device)]
        yield namespace(parts[0]).concatenate(parts)
