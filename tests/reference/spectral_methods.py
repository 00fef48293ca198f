"""Spectral merges of one matrix from the formulas, with full singular value decompositions.

Task vectors are (K, rows, columns) float64. Written for matrices of full rank in general position:
what happens to zero, duplicate and low-rank task vectors is tested apart.
"""

import numpy as np


def polar(matrix: np.ndarray) -> np.ndarray:
    """U V^T of U S V^T."""
    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of a rank."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def tsv_m(taus: np.ndarray, coefficients: np.ndarray, share: float = 1.0) -> np.ndarray:
    """U_perp S V_perp^T of task vectors scaled by lambda_k."""
    n_experts = len(taus)
    rank = int(share * min(taus.shape[1:])) // n_experts
    if rank == 0:
        return np.tensordot(coefficients, taus, 1) / n_experts
    left, values, right = [], [], []
    for coefficient, tau in zip(coefficients, taus, strict=True):
        u, s, vh = np.linalg.svd(coefficient * tau, full_matrices=False)
        left.append(u[:, :rank])
        values.append(s[:rank])
        right.append(vh[:rank])
    u = polar(np.concatenate(left, axis=1))
    vh = polar(np.concatenate(right, axis=0))
    return u @ np.diag(np.concatenate(values)) @ vh


def rtsvm_style(taus: np.ndarray, deviations: float, floor: float) -> np.ndarray:
    """TSV-M with weights from outliers and ranks from densities, at lambda = 1."""
    n_experts, room = len(taus), min(taus.shape[1:])
    outliers, densities = np.zeros(n_experts), np.zeros(n_experts)
    for k, tau in enumerate(taus):
        size = np.abs(tau)
        outliers[k] = size[size > size.mean() + deviations * size.std()].sum()
        densities[k] = (size > floor * size.max()).mean()
    weights = n_experts * outliers / outliers.sum() if outliers.sum() else np.ones(n_experts)
    left, values, right = [], [], []
    for k, tau in enumerate(taus):
        rank = max(1, int(room * densities[k] / densities.sum()))
        u, s, vh = np.linalg.svd(tau, full_matrices=False)
        left.append(u[:, :rank])
        values.append(weights[k] * s[:rank])
        right.append(vh[:rank])
    u, vh = polar(np.concatenate(left, axis=1)), polar(np.concatenate(right, axis=0))
    return u @ np.diag(np.concatenate(values)) @ vh


def iso_c(taus: np.ndarray) -> np.ndarray:
    """mean(S) U V^T of the sum."""
    u, s, vh = np.linalg.svd(taus.sum(0), full_matrices=False)
    return s.mean() * u @ vh


def iso_cts(taus: np.ndarray, common: float) -> np.ndarray:
    """Common directions of the sum and own ones of every task, made orthogonal and equal."""
    n_experts, room = len(taus), min(taus.shape[1:])
    own = round((room - int(common * room)) / n_experts)
    n_common = room - n_experts * own
    u, s, vh = np.linalg.svd(taus.sum(0), full_matrices=False)
    shared = u[:, :n_common]
    left, values, right = [], [], []
    for tau in taus:
        u_k, s_k, vh_k = np.linalg.svd(tau - shared @ shared.T @ tau, full_matrices=False)
        left.append(u_k[:, :own])
        values.append(s_k[:own])
        right.append(vh_k[:own])
    left.append(shared)
    values.append(s[:n_common])
    right.append(vh[:n_common])
    u, vh = polar(np.concatenate(left, axis=1)), polar(np.concatenate(right, axis=0))
    return np.concatenate(values).mean() * u @ vh


def knots(matrices: list[np.ndarray], coefficients: np.ndarray, density: float) -> list[np.ndarray]:
    """U TIES(U^T tau_k) of several matrices (K, rows, columns), trimmed over all of them."""
    bases, rotated = [], []
    for taus in matrices:
        n_experts, _rows, columns = taus.shape
        u, s, vh = np.linalg.svd(np.concatenate(list(taus), axis=1), full_matrices=False)
        kept = s > 1e-6 * s[0]
        bases.append(u[:, kept])
        parts = (s[kept, None] * vh[kept]).reshape(kept.sum(), n_experts, columns)
        rotated.append(parts.transpose(1, 0, 2))
    whole = np.concatenate([part.reshape(len(part), -1) for part in rotated], axis=1)
    rank = int(density * whole.shape[1])
    threshold = np.sort(np.abs(whole), axis=1)[:, whole.shape[1] - rank, None, None]
    merged = []
    for basis, part in zip(bases, rotated, strict=True):
        trimmed = np.where(np.abs(part) >= threshold, part, 0.0)
        sign = np.sign(trimmed.sum(0))
        agreeing = (np.sign(trimmed) == sign) & (trimmed != 0)
        total = (np.where(agreeing, trimmed, 0.0) * coefficients[:, None, None]).sum(0)
        merged.append(basis @ (total / np.maximum(agreeing.sum(0), 1)))
    return merged


def opcm_step(tau: np.ndarray, total: np.ndarray, alpha: float, projection: str) -> np.ndarray:
    """P(tau) in full bases of both sides, entry by entry."""
    rows, columns = total.shape
    u, s, vh = np.linalg.svd(total, full_matrices=True)
    inside = u.T @ tau @ vh.T
    shares = np.cumsum(s) / s.sum()
    if projection == "paper":
        r = next(r for r in range(len(s) + 1) if (r and shares[r - 1] >= alpha) or not alpha)
    else:
        r = next((i for i in range(len(s)) if shares[i] > alpha), 0)
    for i in range(rows):
        for j in range(columns):
            taken = i < r or j < r if projection == "paper" else i < r and j < r
            if taken or i == j:
                inside[i, j] = 0.0
    return u @ inside @ vh


def opcm(
    matrices: list[np.ndarray], others: list[np.ndarray], alpha: float, projection: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One expert after the other, scaled after each to the mean norm so far, as the paper has it.

    `others` are summed as they are. Entries are (K, ...).
    """
    n_experts = len(matrices[0])

    def norm(parts: list[np.ndarray]) -> float:
        return float(np.sqrt(sum((part**2).sum() for part in parts)))

    merged, rest = [m[0] for m in matrices], [o[0] for o in others]
    norms, scale = [norm([*merged, *rest])], 1.0
    for t in range(1, n_experts):
        steps = [
            opcm_step(m[t], now, alpha, projection) for m, now in zip(matrices, merged, strict=True)
        ]
        merged = [scale * now + step for now, step in zip(merged, steps, strict=True)]
        rest = [scale * now + o[t] for now, o in zip(rest, others, strict=True)]
        norms.append(norm([m[t] for m in matrices] + [o[t] for o in others]))
        scale = norm([*merged, *rest]) / float(np.mean(norms))
        merged, rest = [now / scale for now in merged], [now / scale for now in rest]
    return merged, rest
