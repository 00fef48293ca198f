"""Task vectors of LoRA experts in bases that all of them share: small matrices for large ones.

tau_k = L_k R_k. With the QR decompositions `[L_1 .. L_K] = Q A` and `[R_1^T .. R_K^T] = P B`,
`tau_k = Q (A_k B_k^T) P^T`. Q and P have orthonormal columns, so singular values, angles between
singular vectors and inner products are those of A_k B_k^T, whose sides are the sum of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from awd_core.checkpoints import Checkpoint, StoredTensor


@dataclass(frozen=True)
class Small:
    """Task vectors of one matrix, `left vectors_k right^T`; r is the sum of all ranks.

    Attributes:
        vectors: A_k B_k^T, (K, r, r) float64.
        left: Q, (rows, r).
        right: P, (columns, r).
    """

    vectors: np.ndarray
    left: np.ndarray
    right: np.ndarray


def in_common_bases(tensor: StoredTensor, experts: Sequence[Checkpoint]) -> Small | None:
    """The task vectors in common bases of their rows and columns.

    None where an expert's task vector is no product, is not finite, or where r is no less than a
    side of the matrix.

    Cost: two QR decompositions of r columns.
    """
    touching = [k for k, expert in enumerate(experts) if expert.touches(tensor.name)]
    products = [experts[k].tensor(tensor).low_rank() for k in touching]
    factors = [(one.left.numpy(), one.right.numpy().T) for one in products if one is not None]
    if not factors or len(factors) < len(products):
        return None
    lefts, rights = (np.concatenate(side, 1) for side in zip(*factors, strict=True))
    if lefts.shape[1] >= min(tensor.matrix_shape) or not np.isfinite(lefts.sum() + rights.sum()):
        return None
    (left, a), (right, b) = np.linalg.qr(lefts), np.linalg.qr(rights)
    vectors = np.zeros((len(experts), len(a), len(b)))
    ends = np.cumsum([own.shape[1] for own, _ in factors])[:-1]
    for k, of_left, of_right in zip(
        touching, np.split(a, ends, 1), np.split(b, ends, 1), strict=True
    ):
        vectors[k] = of_left @ of_right.T
    return Small(vectors, left, right)
