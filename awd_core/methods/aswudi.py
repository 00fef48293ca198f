"""ASWUDI: WUDI's minimum in as many directions as each matrix effectively has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import knob
from awd_core.lazy import torch
from awd_core.method import MatrixMethod, Memory, matrixwise, sum_over_experts
from awd_core.own_rows import of_task_vectors
from awd_core.vectors import TensorVectors


@dataclass(frozen=True)
class Aswudi(MatrixMethod):
    """SWUDI with f = 1 in the first r eigendirections of C, 0 elsewhere; r from each matrix itself.

    With eigenvalues e and y = sqrt(e), r is the ceiling of

    - `participation_sqrt`: (sum y)^2 / sum y^2;
    - `participation`: (sum e)^2 / sum e^2;
    - `entropy`: exp(-sum p log p) with p = e / sum e.

    Cost: one eigendecomposition of size n for every matrix of n columns.
    """

    key: ClassVar[str] = "aswudi"
    title: ClassVar[str] = "ASWUDI"
    source: ClassVar[str] = "WUDI (arXiv 2503.08099) with a rank for each matrix, from MLLMerging"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, (m_0 - m_0 V_r V_r^\top + D V_r e_r^{-1} V_r^\top)"
    )
    memory: ClassVar[Memory] = matrixwise("6 m n + 5 n^2", lambda k, m, n: 6 * m * n + 5 * n * n)
    one_coefficient: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0

    rule: str = knob(
        "participation_sqrt",
        choices=("participation_sqrt", "participation", "entropy"),
        help="How the number of directions follows from the eigenvalues.",
    )
    start: str = knob(
        "sum", choices=("sum", "mean", "zero"), help="m_0: the sum of the task vectors, or else."
    )

    def solve(self, survey: Any, matrix: TensorVectors) -> torch.Tensor:
        """The merged task vector at lambda = 1."""
        problem = of_task_vectors(matrix.matrices())
        factor = {"sum": 1.0, "mean": 1 / matrix.n_experts, "zero": 0.0}[self.start]
        m = sum_over_experts(matrix.matrices()) * factor
        if problem is None:
            return m

        def share(values: torch.Tensor) -> torch.Tensor:
            f = torch.ones_like(values)
            f[self.n_directions(values.cpu().numpy()) :] = 0.0
            return f

        return problem.filtered(m, share)

    def n_directions(self, values: np.ndarray) -> int:
        """r, at least 1."""
        p = values / values.sum()
        if self.rule == "entropy":
            effective = math.exp(-(p * np.log(p)).sum())
        elif self.rule == "participation":
            effective = 1 / (p * p).sum()
        else:
            effective = np.sqrt(p).sum() ** 2
        # Equal eigenvalues give a whole number but for rounding.
        return min(len(values), max(1, math.ceil(effective * (1 - 1e-12))))

    def rows(
        self, solved: torch.Tensor, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`lambda` times the solution."""
        return solved[start:stop] * coefficients.mean()
