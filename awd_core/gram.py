"""Inner products of task vectors: everything a linear merge and AWD need to know of the weights."""

from collections.abc import Iterable

import numpy as np
import torch

from awd_core.stream import Chunk


def row_grams(chunks: Iterable[Chunk]) -> tuple[np.ndarray, float]:
    """Gram of every output row, `G[r, i, j] = <tau_i[r], tau_j[r]>`, and `||theta_0||^2`.

    Products and sums are float64. Each row is summed on its own, so the result does not depend on
    how the tensor was cut into chunks; the Gram of the tensor is the sum over rows.

    Args:
        chunks: All chunks of one tensor with at least one element.

    Returns:
        (rows, K, K) float64, symmetric, positive semidefinite; and the base's squared norm.
    """
    grams, base_squares = [], []
    for chunk in chunks:
        rows = chunk.task_vectors.transpose(0, 1)
        grams.append(torch.bmm(rows, rows.transpose(1, 2)).cpu().numpy())
        base_squares.append(chunk.base.square().sum(1).cpu().numpy())
    stacked = np.concatenate(grams)
    # Both triangles come from the same products in another order; one of them decides.
    lower = np.tril(stacked)
    symmetric = lower + np.tril(stacked, -1).transpose(0, 2, 1)
    return symmetric, float(np.concatenate(base_squares).sum())


def pack(grams: np.ndarray) -> np.ndarray:
    """(rows, K, K) -> (rows, K(K+1)/2): the lower triangle, row by row."""
    rows, columns = np.tril_indices(grams.shape[-1])
    return np.ascontiguousarray(grams[:, rows, columns])


def unpack(packed: np.ndarray) -> np.ndarray:
    """(rows, K(K+1)/2) -> (rows, K, K), symmetric."""
    n_experts = int((np.sqrt(8 * packed.shape[1] + 1) - 1) / 2)
    rows, columns = np.tril_indices(n_experts)
    grams = np.empty((packed.shape[0], n_experts, n_experts))
    grams[:, rows, columns] = packed
    grams[:, columns, rows] = packed
    return grams
