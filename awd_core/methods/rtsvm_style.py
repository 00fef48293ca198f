"""TSV-M with tasks weighted by their outliers and ranks that follow their density: ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import knob
from awd_core.lazy import torch
from awd_core.method import MatrixMethod, Memory, matrixwise, weighted_sum
from awd_core.remembered import Remembered
from awd_core.singular_tasks import orthogonalised, side_by_side, task_triplets
from awd_core.vectors import TensorVectors


@dataclass(frozen=True)
class RtsvmStyle(MatrixMethod):
    """TSV-M whose tasks differ in weight and in rank. Not a published formula.

    The paper names two ideas, outliers that weigh and ranks that adapt, without formulas that can
    be found. Here, for every matrix and task:

    1. o_k = sum of the |tau_k| that exceed their mean by more than `deviations` standard
       deviations; the singular values of task k are multiplied by K o_k / sum_j o_j (by 1 where no
       task has outliers).
    2. d_k = share of entries larger than `floor` max |tau_k|; task k gets
       int(min(m, n) d_k / sum_j d_j) singular directions, at least one.

    Then TSV-M.
    """

    key: ClassVar[str] = "rtsvm_style"
    title: ClassVar[str] = "R-TSVM-style (ours)"
    source: ClassVar[str] = "Ours, after the idea of R-TSVM, arXiv 2502.06876, without its formulas"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \sum_k \lambda_k \frac{K o_k}{\sum_j o_j}"
        r" U_{\perp k} S_k V_{\perp k}^\top,\quad r_k \propto d_k"
    )
    memory: ClassVar[Memory] = matrixwise(
        "5 m n + 4 min(m, n)^2", lambda k, m, n: 5 * m * n + 4 * min(m, n) ** 2
    )
    default_coefficient: ClassVar[float] = 1.0

    deviations: float = knob(
        3.0, low=0.0, high=10.0, help="Standard deviations above the mean |tau| of an outlier."
    )
    floor: float = knob(
        0.01, low=0.0, high=1.0, help="Share of the largest |tau| above which an entry counts."
    )

    def solve(self, survey: Any, matrix: TensorVectors) -> Remembered:
        """The directions of every task, orthogonal to those of the others, weighted."""
        n_experts, room = matrix.n_experts, min(matrix.shape)
        outliers, densities = zip(*map(self._outliers_and_density, matrix.matrices()), strict=True)
        if room < n_experts:
            taus = torch.stack(list(matrix.matrices())) / n_experts
            return Remembered(lambda coefficients: weighted_sum(coefficients, taus))
        ranks = np.maximum(1, np.floor(room * _shares(densities))).astype(int)
        first = [task_triplets(matrix, index, int(rank)) for index, rank in enumerate(ranks)]
        weights = n_experts * _shares(outliers)
        return Remembered(orthogonalised(side_by_side(first, weights)).merged)

    def rows(
        self, solved: Remembered, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """The weighted sum."""
        return solved(coefficients)[start:stop]

    def _outliers_and_density(self, tau: torch.Tensor) -> tuple[float, float]:
        sizes = tau.abs()
        bound = sizes.mean() + self.deviations * sizes.std(correction=0)
        density = (sizes > self.floor * sizes.max()).double().mean()
        return float(sizes[sizes > bound].sum()), float(density)


def _shares(numbers: tuple[float, ...]) -> np.ndarray:
    """Numbers that sum to one; equal ones where all are zero."""
    total = sum(sorted(numbers))
    return np.array(numbers) / total if total else np.full(len(numbers), 1 / len(numbers))
