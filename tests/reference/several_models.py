"""Methods that make one model a task, on a state dict of arrays (K, ...), nothing streamed."""

import numpy as np

Vectors = dict[str, np.ndarray]


def emr(vectors: Vectors, rescale: str) -> list[dict[str, np.ndarray]]:
    """theta_k - theta_0 for every task k."""
    n_experts = len(next(iter(vectors.values())))
    unified = {}
    for name, taus in vectors.items():
        sign = np.where(taus.sum(0) > 0, 1.0, -1.0)
        unified[name] = sign * np.where(np.sign(taus) == sign, np.abs(taus), 0.0).max(0)
    models = []
    for k in range(n_experts):
        masks = {name: taus[k] * unified[name] > 0 for name, taus in vectors.items()}
        over = np.mean if rescale == "code" else np.sum
        own = sum(over(np.abs(taus[k])) for taus in vectors.values())
        shared = sum(over(np.abs(masks[name] * unified[name])) for name in vectors)
        models.append({name: own / shared * masks[name] * unified[name] for name in vectors})
    return models


def tall_masks(vectors: Vectors, mask: float) -> list[dict[str, np.ndarray]]:
    """theta_k - theta_0 for every task k."""
    n_experts = len(next(iter(vectors.values())))
    models = []
    for k in range(n_experts):
        model = {}
        for name, taus in vectors.items():
            total = taus.sum(0)
            model[name] = (np.abs(taus[k]) > mask * np.abs(total - taus[k])) * total
        models.append(model)
    return models


def rebuilt(points: np.ndarray, components: int) -> np.ndarray:
    """K points a row, (K, rows, n), from their mean and first principal directions, by SVD."""
    result = np.empty_like(points)
    for row in range(points.shape[1]):
        mean = points[:, row].mean(0)
        _, _, directions = np.linalg.svd(points[:, row] - mean, full_matrices=False)
        first = directions[:components]
        result[:, row] = mean + (points[:, row] - mean) @ first.T @ first
    return result
