"""Merge methods and statistics on whole vectors, (K, n) float64, with nothing streamed."""

import numpy as np


def task_arithmetic(task_vectors: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """sum_k lambda_k tau_k."""
    return coefficients @ task_vectors


def average(task_vectors: np.ndarray) -> np.ndarray:
    """1/K sum_k tau_k."""
    return task_vectors.mean(0)


def trim(task_vectors: np.ndarray, density: float) -> np.ndarray:
    """Keep the int(density n) entries of largest magnitude of every vector, and all that tie."""
    n = task_vectors.shape[1]
    rank = int(density * n)
    if rank == 0:
        return np.zeros_like(task_vectors)
    threshold = np.sort(np.abs(task_vectors), axis=1)[:, n - rank, None]
    return np.where(np.abs(task_vectors) >= threshold, task_vectors, 0.0)


def ties(task_vectors: np.ndarray, density: float) -> np.ndarray:
    """Trim, elect, disjoint mean, as the paper has it, for lambda = 1.

    Where the kept entries cancel exactly the sign that most elements elected decides; when that
    ties as well, no sign is elected and nothing is merged there.
    """
    trimmed = trim(task_vectors, density)
    elected = np.sign(trimmed.sum(0))
    majority = np.sign(elected.sum())
    elected = np.where(elected == 0, majority, elected)
    agreeing = (trimmed != 0) & (np.sign(trimmed) == elected)
    count = np.maximum(agreeing.sum(0), 1)
    return np.where(agreeing, trimmed, 0.0).sum(0) / count


def gram(task_vectors: np.ndarray) -> np.ndarray:
    """G_ij = <tau_i, tau_j>, product by product."""
    n_experts = len(task_vectors)
    inner = np.zeros((n_experts, n_experts))
    for i in range(n_experts):
        for j in range(n_experts):
            inner[i, j] = (task_vectors[i] * task_vectors[j]).sum()
    return inner


def cosines(task_vectors: np.ndarray) -> np.ndarray:
    """cos(tau_i, tau_j)."""
    norms = np.linalg.norm(task_vectors, axis=1)
    return gram(task_vectors) / np.outer(norms, norms)


def sign_counts(task_vectors: np.ndarray, density: float) -> tuple[np.ndarray, np.ndarray]:
    """S S^T and |S| |S|^T over the largest share `density` of one tensor.

    The threshold is the ceil(density n)-th largest magnitude with the lower half of its float32
    bits cleared: the entries are compared at a relative resolution of 2^-7.
    """
    n = task_vectors.shape[1]
    magnitudes = np.abs(task_vectors.astype(np.float32))
    rank = int(np.ceil(density * n))
    threshold = np.sort(magnitudes, axis=1)[:, n - rank, None]
    floor = (threshold.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    signs = np.where(magnitudes >= floor, np.sign(task_vectors), 0).astype(np.int64)
    return signs @ signs.T, np.abs(signs) @ np.abs(signs).T
