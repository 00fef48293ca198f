"""Spectral statistics from full singular value decompositions, in float64."""

import numpy as np

Factors = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def truncated(matrices: np.ndarray) -> Factors:
    """U_k, s_k, V_k of the floor(r / K) leading triplets; (K, rows, columns)."""
    count = max(1, min(matrices.shape[1:]) // len(matrices))
    found = []
    for matrix in matrices:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        found.append((left[:, :count], values[:count], right[:count].T))
    return found


def interference(matrices: np.ndarray) -> np.ndarray:
    """(U^T U - I) S (V^T V - I), as it is written."""
    factors = truncated(matrices)
    left = np.concatenate([u for u, _, _ in factors], axis=1)
    right = np.concatenate([v for _, _, v in factors], axis=1)
    strengths = np.concatenate([s for _, s, _ in factors])
    eye = np.eye(len(strengths))
    return (left.T @ left - eye) @ np.diag(strengths) @ (right.T @ right - eye)


def alignment(matrix: np.ndarray, merged: np.ndarray) -> tuple[float, int]:
    """||U_k U_k^T Delta|| / ||Delta|| by the projector, and k for a relative error of 5 %."""
    left, values, _ = np.linalg.svd(merged, full_matrices=False)
    total = (values**2).sum()
    rank = next(k for k in range(1, len(values) + 1) if (values[k:] ** 2).sum() <= 0.05**2 * total)
    basis = left[:, :rank]
    return float(np.linalg.norm(basis @ basis.T @ matrix) / np.linalg.norm(matrix)), rank


def overcounting(matrices: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """s_r^k along the left singular vectors of the sum, (r, K)."""
    left, _, _ = np.linalg.svd(matrices.sum(0), full_matrices=False)
    merged = np.tensordot(multipliers, matrices, 1)
    own = np.stack([left.T @ matrix for matrix in matrices], axis=1)
    return np.einsum("rn,rkn->rk", left.T @ merged, own) / (own**2).sum(2)


def entropy_rank(matrix: np.ndarray) -> float:
    """exp of the entropy of normalised singular values."""
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
