"""TSV-M: the singular vectors of all tasks, made orthogonal to one another, then summed."""

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
class TsvM(MatrixMethod):
    """Every task keeps its first int(share min(m, n) / K) singular triplets U_k s_k V_k.

    U = [U_1 ... U_K] and V = [V_1 ... V_K] are replaced by the nearest matrices with orthonormal
    columns; then merged = sum_k lambda_k U_k s_k V_k^T with the columns of task k. Different
    lambda_k are the same as task vectors scaled beforehand.

    A matrix with fewer than K rows or columns has no room for K tasks: it gets the mean. Directions
    that two tasks have in common (duplicate experts) are shared by them, not doubled; a task vector
    that is zero, or of lower rank than its share, takes no more room than it needs.

    Cost: K + 2 eigendecompositions of size min(m, n) for every matrix.
    """

    key: ClassVar[str] = "tsv_m"
    title: ClassVar[str] = "TSV-M"
    source: ClassVar[str] = "Gargiulo et al., Task Singular Vectors, arXiv 2412.00081"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \sum_k \lambda_k U_{\perp k} S_k V_{\perp k}^\top,\quad"
        r" U_\perp = \mathrm{polar}([U_1 \dots U_K]),\ V_\perp = \mathrm{polar}([V_1 \dots V_K])"
    )
    memory: ClassVar[Memory] = matrixwise(
        "5 m n + 4 min(m, n)^2", lambda k, m, n: 5 * m * n + 4 * min(m, n) ** 2
    )
    default_coefficient: ClassVar[float] = 1.0

    share: float = knob(
        1.0,
        low=0.0,
        high=1.0,
        help="Share of a matrix's singular directions that all tasks get together.",
    )

    def solve(self, survey: Any, matrix: TensorVectors) -> Remembered:
        """The directions of every task, orthogonal to those of the others."""
        n_experts = matrix.n_experts
        rank = int(self.share * min(matrix.shape)) // n_experts
        if not rank:
            taus = torch.stack(list(matrix.matrices())) / n_experts
            return Remembered(lambda coefficients: weighted_sum(coefficients, taus))
        first = [task_triplets(matrix, index, rank) for index in range(n_experts)]
        return Remembered(orthogonalised(side_by_side(first, np.ones(n_experts))).merged)

    def rows(
        self, solved: Remembered, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`sum_k lambda_k U_k s_k V_k^T`."""
        return solved(coefficients)[start:stop]
