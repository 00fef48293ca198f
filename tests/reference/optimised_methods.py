"""Optimised merges of one matrix from their losses: gradients by hand, Adam by its definition.

Task vectors are (K, rows, columns) float64.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg


def adam(
    gradient: Callable[[np.ndarray], np.ndarray], start: np.ndarray, lr: float, steps: int
) -> np.ndarray:
    """Kingma and Ba, algorithm 1."""
    x, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t in range(1, steps + 1):
        g = gradient(x)
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g * g
        x = x - lr * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return x


def wudi_loss(m: np.ndarray, taus: np.ndarray) -> float:
    """sum_k ||(m - tau_k) tau_k^T||^2 / ||tau_k||^2."""
    return float(sum((((m - tau) @ tau.T) ** 2).sum() / (tau**2).sum() for tau in taus))


def wudi_gradient(m: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Its derivative, task by task."""
    return np.sum([2 * (m - tau) @ tau.T @ tau / (tau**2).sum() for tau in taus], axis=0)


def wudi(taus: np.ndarray, lr: float, steps: int) -> np.ndarray:
    """Adam from the sum."""
    return adam(lambda m: wudi_gradient(m, taus), taus.sum(0), lr, steps)


def curvature(taus: np.ndarray) -> np.ndarray:
    """C = sum_k tau_k^T tau_k / ||tau_k||^2."""
    return np.sum([tau.T @ tau / (tau**2).sum() for tau in taus], axis=0)


def flow(taus: np.ndarray, start: np.ndarray, time: float) -> np.ndarray:
    """m' = -(m C - D) for a time, by a matrix exponential of the affine flow."""
    c = curvature(taus)
    d = np.sum([tau @ tau.T @ tau / (tau**2).sum() for tau in taus], axis=0)
    n = len(c)
    # d/dt [m 1] = [m 1] [[-C, 0], [D, 0]], for every row of m and D at once.
    rows = []
    for m_row, d_row in zip(start, d, strict=True):
        generator = np.zeros((n + 1, n + 1))
        generator[:n, :n], generator[n, :n] = -c, d_row
        rows.append((np.append(m_row, 1.0) @ scipy.linalg.expm(time * generator))[:n])
    return np.array(rows)


def minimum_on(taus: np.ndarray, start: np.ndarray, n_directions: int) -> np.ndarray:
    """m that minimises the loss over the first eigendirections of C, and is m_0 in the others."""
    values, vectors = np.linalg.eigh(curvature(taus))
    first = vectors[:, np.argsort(values)[::-1][:n_directions]]
    # Least squares for x in m = m_0 + x first^T, row by row of the stacked residuals.
    left, right = np.zeros((n_directions, n_directions)), np.zeros((len(start), n_directions))
    for tau in taus:
        inside = tau @ first / np.linalg.norm(tau)
        left += inside.T @ inside
        right += (tau - start) @ tau.T @ tau @ first / (tau**2).sum()
    return start + np.linalg.solve(left, right.T).T @ first.T


def optmerge_gradient(taus: np.ndarray, centred: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Of sum_k ||(m - t_k) p_k^T||^2 / ||tau_k||^2, with p_k and t_k from decompositions."""
    n_experts, mean = len(taus), taus.mean(0)
    rank = min(taus.shape[1:]) // n_experts
    terms = []
    for tau in taus:
        _, s, vh = np.linalg.svd(tau, full_matrices=False)
        proxy = np.diag(s[:rank]) @ vh[:rank]
        offset = mean if centred else np.zeros_like(mean)
        u, s, vh = np.linalg.svd(tau - offset, full_matrices=False)
        target = (u[:, :rank] * s[:rank]) @ vh[:rank] + offset
        terms.append((target, proxy, (tau**2).sum()))
    return lambda m: np.sum([2 * (m - t) @ p.T @ p / square for t, p, square in terms], axis=0)


def optmerge(taus: np.ndarray, preset: str, lr: float, steps: int) -> np.ndarray:
    """The two codes of the authors: `full` with Adam from the sum, `lora` with momentum."""
    gradient = optmerge_gradient(taus, centred=preset == "full")
    if preset == "full":
        return adam(gradient, taus.sum(0), lr, steps)
    m, velocity = taus.mean(0), np.zeros_like(taus[0])
    for _ in range(steps):
        velocity = 0.9 * velocity + gradient(m)
        m = m - lr * velocity
    return m


def doge_loss(delta: np.ndarray, taus: np.ndarray, scales: np.ndarray) -> float:
    """sum_j sum_rows <tau_j, tau_j - sum_i l_i (tau_i + delta)>^2."""
    merged = np.tensordot(scales, taus + delta, 1)
    return float(sum((((tau * (tau - merged)).sum(1)) ** 2).sum() for tau in taus))


def doge_delta(
    taus: np.ndarray, scale: float, subspace: float, lr: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """delta by Adam on projected gradients, and l_k."""
    n_experts, room = len(taus), min(taus.shape[1:])
    scales = np.array([scale / np.linalg.norm(tau) for tau in taus])
    firsts = [np.linalg.svd(tau)[0][:, : room // n_experts] for tau in taus]
    # With one expert all singular values are 1, and its own order is the only one there is.
    basis = np.linalg.svd(np.concatenate(firsts, axis=1))[0] if n_experts > 1 else firsts[0]
    shared = basis[:, : int(room / subspace)]
    outside = np.eye(taus.shape[1]) - shared @ shared.T

    def gradient(delta: np.ndarray) -> np.ndarray:
        merged = np.tensordot(scales, taus + delta, 1)
        pulls = [2 * (tau * (tau - merged)).sum(1)[:, None] * tau for tau in taus]
        return outside @ (-scales.sum() * np.sum(pulls, axis=0))

    return adam(gradient, np.zeros_like(taus[0]), lr, steps), scales


def doge(
    matrices: list[np.ndarray],
    coefficients: np.ndarray,
    density: float,
    scale: float = 0.07,
    subspace: float = 6.0,
    lr: float = 1e-4,
    steps: int = 400,
) -> list[np.ndarray]:
    """sum_k lambda_k l_k M_k (tau_k + delta), masks over all matrices together."""
    whole = np.concatenate([taus.reshape(len(taus), -1) for taus in matrices], axis=1)
    magnitudes = np.abs(whole).astype(np.float32)
    rank = int(density * whole.shape[1])
    threshold = np.sort(magnitudes, axis=1)[:, whole.shape[1] - rank]
    merged = []
    for taus in matrices:
        delta, scales = doge_delta(taus, scale, subspace, lr, steps)
        kept = np.abs(taus).astype(np.float32) >= threshold[:, None, None]
        parts = coefficients[:, None, None] * scales[:, None, None] * kept * (taus + delta)
        merged.append(parts.sum(0))
    return merged
