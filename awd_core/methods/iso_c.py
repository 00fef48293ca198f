"""Iso-C: the sum of the task vectors with all its singular values made equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.lazy import torch
from awd_core.linear_algebra import isotropic
from awd_core.method import MatrixMethod, Memory, matrixwise
from awd_core.singular_tasks import sum_triplets
from awd_core.vectors import TensorVectors


@dataclass(frozen=True)
class IsoC(MatrixMethod):
    """`lambda mean(s) U V^T` of `sum_k tau_k = U diag(s) V^T`.

    Only directions in which the sum has a length count, in U V^T and in the mean: for LoRA experts,
    whose sum has a low rank, the published code spreads the mean over all of the others, which no
    expert ever learned.

    Cost: one eigendecomposition of size min(m, n) for every matrix.
    """

    key: ClassVar[str] = "iso_c"
    title: ClassVar[str] = "Iso-C"
    source: ClassVar[str] = "Marczak et al., No Task Left Behind, arXiv 2502.04959"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, \bar s\, U V^\top,\quad \sum_k \tau_k = U \,\mathrm{diag}(s) V^\top"
    )
    memory: ClassVar[Memory] = matrixwise(
        "4 m n + 4 min(m, n)^2", lambda k, m, n: 4 * m * n + 4 * min(m, n) ** 2
    )
    one_coefficient: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0

    def solve(self, survey: Any, matrix: TensorVectors) -> torch.Tensor:
        """The merged task vector at lambda = 1."""
        found = sum_triplets(matrix)
        return isotropic(found.u, found.s, found.v)

    def rows(
        self, solved: torch.Tensor, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`lambda mean(s) U V^T`."""
        return solved[start:stop] * coefficients.mean()
