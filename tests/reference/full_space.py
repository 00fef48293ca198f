"""AWD as the paper writes it: gradient descent on an explicit redundant vector delta in R^n.

v_k = tau_k - delta,  L_O = 1/(K(K-1)) sum_{i != j} |cos(v_i, v_j)|,  L = L_O + alpha ||delta||
(or alpha ||delta||^2, or nothing), delta_0 = 0, delta <- delta - beta grad L. All arrays may carry
leading axes, one entry for each group that has a redundant vector of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Trace:
    """delta, (..., n); L before every step and after the last, (steps + 1, ...)."""

    delta: np.ndarray
    losses: np.ndarray


def overlap(v: np.ndarray) -> np.ndarray:
    """L_O of the rows of v, (..., K, n) -> (...)."""
    n_vectors = v.shape[-2]
    unit = v / np.linalg.norm(v, axis=-1, keepdims=True)
    total = np.abs(unit @ np.swapaxes(unit, -1, -2)).sum((-1, -2)) - n_vectors
    return total / (n_vectors * (n_vectors - 1))


def overlap_gradient(v: np.ndarray) -> np.ndarray:
    """grad L_O with respect to delta, pair by pair: (..., K, n) -> (..., n).

    d|cos(v_i, v_j)| / d delta = -s [(v_i + v_j)/(n_i n_j) - cos (v_i/n_i^2 + v_j/n_j^2)].
    """
    n_vectors = v.shape[-2]
    i, j = np.tril_indices(n_vectors, -1)
    a, b = v[..., i, :], v[..., j, :]
    norms = np.linalg.norm(v, axis=-1, keepdims=True)
    n_a, n_b = norms[..., i, :], norms[..., j, :]
    cosine = (a * b).sum(-1, keepdims=True) / (n_a * n_b)
    slopes = (a + b) / (n_a * n_b) - cosine * (a / n_a**2 + b / n_b**2)
    return -(np.sign(cosine) * slopes).sum(-2) / len(i)


def penalty_gradient(delta: np.ndarray, penalty: str) -> np.ndarray:
    """Gradient of ||delta|| (0 at its kink), of ||delta||^2, or 0."""
    if penalty == "l2":
        norm = np.linalg.norm(delta, axis=-1, keepdims=True)
        return np.divide(delta, norm, out=np.zeros_like(delta), where=norm > 0)
    return 2 * delta if penalty == "l2_squared" else np.zeros_like(delta)


def penalty_value(delta: np.ndarray, penalty: str) -> np.ndarray:
    """||delta||, ||delta||^2 or 0."""
    norm = np.linalg.norm(delta, axis=-1)
    return {"l2": norm, "l2_squared": norm**2, "none": 0 * norm}[penalty]


def descend(
    task_vectors: np.ndarray,
    alpha: float | np.ndarray,
    lr: float | np.ndarray,
    steps: int,
    penalty: str = "l2",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Trace:
    """Gradient descent on delta, (..., K, n) -> (..., n). alpha and lr: numbers, or (...,)."""
    alpha, lr = np.asarray(alpha)[..., None], np.asarray(lr)[..., None]
    delta = np.zeros_like(task_vectors[..., 0, :])
    velocity = np.zeros_like(delta)
    losses = []
    for step in range(steps + 1):
        v = task_vectors - delta[..., None, :]
        losses.append(overlap(v) + alpha[..., 0] * penalty_value(delta, penalty))
        if step < steps:
            gradient = overlap_gradient(v) + alpha * penalty_gradient(delta, penalty)
            velocity = momentum * velocity + gradient + weight_decay * delta
            delta = delta - lr * velocity
    return Trace(delta, np.array(losses))


def descend_by_autograd(
    task_vectors: np.ndarray,
    alpha: float,
    lr: float,
    steps: int,
    penalty: str = "l2",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """The same with torch's own cosine, autograd and SGD; one group, (K, n) -> (n,)."""
    tau = torch.from_numpy(task_vectors)
    delta = torch.zeros(tau.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([delta], lr=lr, momentum=momentum, weight_decay=weight_decay)
    i, j = torch.tril_indices(len(tau), len(tau), offset=-1)
    for _ in range(steps):
        v = tau - delta
        loss = torch.cosine_similarity(v[i], v[j], dim=1, eps=1e-300).abs().mean()
        if penalty == "l2":
            loss = loss + alpha * torch.linalg.vector_norm(delta)
        elif penalty == "l2_squared":
            loss = loss + alpha * delta.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return delta.detach().numpy()


def scales(task_vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha_crit = ||grad L_O(0)|| and s = mean_k ||tau_k||; (..., K, n) -> (...), (...)."""
    critical = np.linalg.norm(overlap_gradient(task_vectors), axis=-1)
    return critical, np.linalg.norm(task_vectors, axis=-1).mean(-1)


def cut(
    task_vectors: Mapping[str, np.ndarray], granularity: str, blocks: Mapping[str, str]
) -> list[tuple[list[str], np.ndarray]]:
    """Groups of one granularity: names of the tensors, and their vectors (..., K, n) side by side.

    At `row` the rows of a matrix are the leading axis; vectors and scalars are one group each.
    """
    flat = {name: tau.reshape(len(tau), -1) for name, tau in task_vectors.items()}
    if granularity == "row":
        return [
            (
                [name],
                tau.reshape(*tau.shape[:2], -1).transpose(1, 0, 2) if tau.ndim > 2 else flat[name],
            )
            for name, tau in task_vectors.items()
        ]
    label = {"model": lambda name: "model", "block": blocks.__getitem__, "tensor": str}[granularity]
    members: dict[str, list[str]] = {}
    for name in task_vectors:
        members.setdefault(label(name), []).append(name)
    return [(names, np.concatenate([flat[n] for n in names], 1)) for names in members.values()]


def uncut(names: Sequence[str], delta: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """delta of one group as tensors by name."""
    ends = np.cumsum([int(np.prod(shapes[name])) for name in names])[:-1]
    parts = np.split(delta.reshape(-1), ends)
    return {name: part.reshape(shapes[name]) for name, part in zip(names, parts, strict=True)}
