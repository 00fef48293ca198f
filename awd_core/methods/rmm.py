"""RMM: experts rebuilt from a mean and a few directions that they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.dropping import row_sums
from awd_core.knobs import knob
from awd_core.lazy import torch
from awd_core.method import Executor, MergeMethod, sum_over_experts
from awd_core.vectors import Piece


@dataclass(frozen=True)
class Rmm(MergeMethod):
    """Every row, K points in n dimensions, from its first principal components.

    tau_k becomes mean + the projection of tau_k - mean on `components` directions, for the task k
    that is known. The principal directions of K points lie in their span, so they follow from the
    centred K x K Gram of each row, in closed form. components >= K - 1 gives every expert back.

    This is no single model: what is shared is the mean and the directions; a task adds
    `components` numbers a row.
    """

    key: ClassVar[str] = "rmm"
    title: ClassVar[str] = "RMM (reversible)"
    source: ClassVar[str] = "Reversible Model Merging, arXiv 2510.14163"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, (\bar\tau + P_p (\tau_k - \bar\tau)),\quad"
        r" P_p: \text{principal directions of each row}"
    )
    executor: ClassVar[Executor] = "stream"
    needs_task: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0

    task: int = knob(0, low=0, high=9999, help="The expert whose model is written, from 0.")
    components: int = knob(
        2, low=0, high=64, help="Principal directions a row; K - 1 of them lose nothing."
    )

    def combine(self, prepared: Any, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """`lambda` times the rebuilt task vector."""
        found = rebuilt(piece.task_vectors, self.task, self.components)
        return found * float(coefficients[self.task])


def rebuilt(points: torch.Tensor, task: int, components: int) -> torch.Tensor:
    """One of K points a row, from their mean and first principal directions.

    Args:
        points: (K, rows, n).
        task: Which of the K.
        components: Principal directions kept in each row.

    Returns:
        (rows, n).
    """
    mean = sum_over_experts(points) / len(points)
    apart = points - mean
    shares = torch.from_numpy(_shares(_row_grams(apart), task, components)).to(points.device)
    inside = (share[:, None] * part for share, part in zip(shares, apart, strict=True))
    return mean + sum_over_experts(inside)


def _shares(grams: np.ndarray, task: int, components: int) -> np.ndarray:
    """What the projection of one point takes of every point, by row, (K, rows).

    NumPy decomposes each matrix in the same memory and products are added one by one. A batched
    decomposition or product may round a matrix in another way where it begins at another address,
    and a row would depend on the rows beside it.
    """
    _, vectors = np.linalg.eigh(grams)
    first = vectors[:, :, max(0, len(grams[0]) - components) :]
    shares = np.zeros(grams.shape[:2])
    for direction in np.moveaxis(first, 2, 0):
        shares += direction * direction[:, task, None]
    return shares.T


def _row_grams(points: torch.Tensor) -> np.ndarray:
    """Inner products of the K points of every row, (rows, K, K), the same for any rows."""
    n_points, rows, _ = points.shape
    grams = np.empty((rows, n_points, n_points))
    for i in range(n_points):
        for j in range(i + 1):
            grams[:, i, j] = grams[:, j, i] = row_sums(points[i] * points[j])
    return grams
