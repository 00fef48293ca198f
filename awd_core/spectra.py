"""Singular vectors of task vectors: who uses whose directions, and how strongly.

For every matrix that an expert changes, Delta_k = tau_k = U_k S_k V_k^T. Kept of each expert are
the q = floor(r / K) leading triplets, r = min(rows, columns), as TSV-M keeps them. What comes of
them is small and stays with the study; the vectors themselves are not kept.

A matrix is decomposed in full, unless it is large and there are many experts: then by a randomised
SVD (Halko et al., arXiv 0909.4061) of q + OVERSAMPLING directions, where that takes less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from awd_core.arrays import Array, falling, namespace, on_host
from awd_core.spectral import left_basis, padded, rotated_grams

# Up to this short side every matrix is decomposed in full, .24 s at 1024 x 1024.
EXACT_SIDE = 1024
# To look for more than this share of all directions takes as long as a full decomposition, and on
# a flat spectrum it errs by 2 to 5 % of a singular value (`benchmarks.decompositions`).
RANDOMISED_SHARE = 1 / 4
OVERSAMPLING = 32
POWER_ITERATIONS = 4
# Triplets whose singular value is below this share of the largest are rounding: an expert of rank
# 16 has 16 directions, and any basis of the rest is as good as any other.
NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class Spectra:
    """What is kept of the singular vectors of one matrix, or of many with an axis in front.

    Attributes:
        values: Singular values of every expert, falling; NaN where not found. (K, r) float32.
        strengths: Sum of the kept singular values of every expert, (K,).
        counts: Kept triplets of every expert, at most q, (K,) int64.
        blocks: Sums of absolute entries of the blocks of singular task interference, (K, K).
        contributions: The same of what expert m contributes to block (i, j), at [m, i, j].
        aligned: `||U_j^T Delta_i||^2` at [i, j], U_j the kept left vectors, (K, K).
    """

    values: np.ndarray
    strengths: np.ndarray
    counts: np.ndarray
    blocks: np.ndarray
    contributions: np.ndarray
    aligned: np.ndarray


@dataclass(frozen=True)
class Leading:
    """The leading singular triplets of one matrix.

    Attributes:
        values: All singular values that were found, falling, (<= r,) float64.
        left: Leading left singular vectors, (rows, q); zero where negligible.
        strengths: Their singular values, (q,); zero where negligible.
        right: Leading right singular vectors, (columns, q); zero where negligible.
    """

    values: Array
    left: Array
    strengths: Array
    right: Array


def in_full(side: int, count: int) -> bool:
    """Whether a matrix is decomposed in full: by its short side, and the triplets kept of it.

    Decided by time: `benchmarks.decompositions`.
    """
    return side <= EXACT_SIDE or count + OVERSAMPLING > RANDOMISED_SHARE * side


def leading_triplets(matrix: Array, count: int, seed: int, exact: bool) -> Leading:
    """The `count` leading singular triplets of a matrix, in float64.

    Args:
        matrix: (rows, columns) float64.
        count: q.
        seed: Decides the draws of the randomised decomposition.
        exact: Whether to decompose in full, by an eigendecomposition of the smaller Gram matrix.
            That squares the condition number: singular values below 1e-8 of the largest are lost.
    """
    xp = namespace(matrix)
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if exact:
        squares, vectors = falling(*xp.linalg.eigh(short @ short.T))
        values = xp.sqrt(xp.clip(squares, 0.0, None))
    else:
        vectors, values = _randomised(short, count, seed)
    near, strengths = vectors[:, :count], values[:count]
    kept = strengths > NEGLIGIBLE * strengths[:1]
    strengths, near = strengths * kept, near * kept
    far = (short.T @ near) / xp.where(kept, strengths, 1.0)
    left, right = (near, far) if short is matrix else (far, near)
    return Leading(values, left, strengths, right)


def _randomised(short: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Left singular vectors and values in float32, of no more rows than columns: Algorithm 4.4."""
    xp = namespace(short)
    single = xp.asarray(short, dtype=xp.float32)
    shape = single.shape[1], min(count + OVERSAMPLING, len(single))
    draws = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    basis, _ = xp.linalg.qr(single @ xp.asarray(draws, device=single.device))
    for _ in range(POWER_ITERATIONS):
        basis, _ = xp.linalg.qr(single.T @ basis)
        basis, _ = xp.linalg.qr(single @ basis)
    inner, values, _ = xp.linalg.svd(basis.T @ single, full_matrices=False)
    return xp.asarray(basis @ inner, dtype=xp.float64), xp.asarray(values, dtype=xp.float64)


def interference_blocks(triplets: Sequence[Leading]) -> tuple[np.ndarray, np.ndarray]:
    """Singular task interference `E = (U^T U - I) S (V^T V - I)`, and who causes which part of it.

    U = [U_1 .. U_K], V = [V_1 .. V_K] side by side, S = diag of all kept singular values. Block
    (i, j) of E is `U_i^T (sum over m not in {i, j} of Delta_m) V_j` with truncated Delta_m, so
    expert m contributes `U_i^T Delta_m V_j` to it.

    Returns:
        Sums of absolute entries of every block of E, (K, K), and of every contribution at
        [m, i, j], (K, K, K), zero where m is i or j. Gargiulo et al., arXiv 2412.00081.
    """
    n_experts, count = len(triplets), len(triplets[0].strengths)
    xp = namespace(triplets[0].left)
    left = xp.concatenate([one.left for one in triplets], 1)
    right = xp.concatenate([one.right for one in triplets], 1)
    between_left, between_right = left.T @ left, right.T @ right
    total = xp.zeros_like(between_left)
    parts = np.zeros((n_experts, n_experts, n_experts))
    for m, one in enumerate(triplets):
        own = slice(m * count, (m + 1) * count)
        part = (between_left[:, own] * one.strengths) @ between_right[own]
        part[own] = 0.0
        part[:, own] = 0.0
        total += part
        parts[m] = _block_sums(part, n_experts)
    return _block_sums(total, n_experts), parts


def _block_sums(matrix: Array, n_experts: int) -> np.ndarray:
    count = len(matrix) // n_experts
    blocks = abs(matrix).reshape(n_experts, count, n_experts, count)
    return on_host(blocks.sum((1, 3)))


def matrix_spectra(
    name: str, n_experts: int, side: int, sweep: Callable[[], Iterable[Array]]
) -> tuple[Spectra, np.ndarray]:
    """Everything of one matrix: its `Spectra`, and the Grams of its rotated rows.

    Args:
        name: Of the tensor; decides the draws of a randomised decomposition.
        n_experts: K.
        side: r of the whole matrix.
        sweep: Starts the matrices tau_k anew, (rows, columns) float64, expert by expert; without
            rows in which nobody moves, or in other orthonormal bases that span all of them.

    Returns:
        The second is what `awd_core.spectral.spectral_grams` returns.

    Cost: two sweeps, K decompositions and one of the sum.
    """
    found: list[Leading] = []
    total: Array = 0.0
    for k, tau in enumerate(sweep()):
        count = min(max(1, side // n_experts), *tau.shape)
        whole = in_full(min(tau.shape), count)
        found.append(leading_triplets(tau, count, _seed(name, k), whole))
        total = total + tau
    blocks, contributions = interference_blocks(found)
    left = namespace(total).concatenate([one.left for one in found], 1)
    aligned = []
    for tau in sweep():
        energies = ((left.T @ tau) ** 2).sum(1)
        aligned.append(on_host(energies.reshape(n_experts, -1).sum(1)))
    values = np.stack([on_host(one.values) for one in found]).astype(np.float32)
    if values.shape[1] == min(total.shape):
        # All that there are: in the directions that were left out nobody moves.
        values = np.pad(values, ((0, 0), (0, side - values.shape[1])))
    spectra = Spectra(
        values=values,
        strengths=np.array([float(one.strengths.sum()) for one in found]),
        counts=np.array([int((one.strengths > 0).sum()) for one in found]),
        blocks=blocks,
        contributions=contributions,
        aligned=np.stack(aligned),
    )
    grams = rotated_grams(left_basis(total), sweep())
    return spectra, padded(grams, side)


def _seed(name: str, expert: int) -> int:
    return crc32(f"{expert} {name}".encode())
