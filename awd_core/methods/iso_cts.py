"""Iso-CTS: common directions of the sum, directions of each task beside them, all of one length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.linear_algebra import (
    LowRank,
    Triplets,
    isotropic,
    polar,
    product_triplets,
    singular_triplets,
)
from awd_core.method import MatrixMethod, Memory, matrixwise
from awd_core.singular_tasks import sum_triplets
from awd_core.vectors import TensorVectors


@dataclass(frozen=True)
class IsoCts(MatrixMethod):
    """Room for every task beside the directions that the sum of the task vectors has.

    With r = min(m, n), s = round((r - int(common r)) / K) directions for every task and
    c = r - K s common ones:

    1. U_c, s_c, V_c: the first c singular triplets of sum_k tau_k.
    2. U_k, s_k, V_k: the first s singular triplets of tau_k - U_c U_c^T tau_k.
    3. U = [U_1 ... U_K U_c] and V likewise are replaced by the nearest matrices with orthonormal
       columns; merged = lambda mean(all s) U V^T.

    Only directions with a length count, as in Iso-C. s = 0 is Iso-C.

    Cost: K + 3 eigendecompositions of size min(m, n) for every matrix.
    """

    key: ClassVar[str] = "iso_cts"
    title: ClassVar[str] = "Iso-CTS"
    source: ClassVar[str] = "Marczak et al., No Task Left Behind, arXiv 2502.04959"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, \bar s\; \mathrm{polar}([U_1 \dots U_K\, U_c])\;"
        r"\mathrm{polar}([V_1 \dots V_K\, V_c])^\top"
    )
    memory: ClassVar[Memory] = matrixwise(
        "6 m n + 4 min(m, n)^2", lambda k, m, n: 6 * m * n + 4 * min(m, n) ** 2
    )
    one_coefficient: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(note="Common share .8; lambda 1 to 1.5."),
    }

    common: float = knob(
        0.8, low=0.0, high=1.0, help="Share of the singular directions that is common to all tasks."
    )

    def solve(self, survey: Any, matrix: TensorVectors) -> torch.Tensor:
        """The merged task vector at lambda = 1."""
        n_common, n_own = self.split(min(matrix.shape), matrix.n_experts)
        shared = sum_triplets(matrix, n_common)
        own = [beside(matrix, index, shared.u, n_own) for index in range(matrix.n_experts)]
        blocks = [*own, shared]
        return isotropic(
            polar(torch.cat([block.u for block in blocks], dim=1)),
            torch.cat([block.s for block in blocks]),
            polar(torch.cat([block.v for block in blocks], dim=1)),
        )

    def split(self, room: int, n_experts: int) -> tuple[int, int]:
        """How many directions are common, and how many are each task's."""
        own = min(round((room - int(room * self.common)) / n_experts), room // n_experts)
        return room - n_experts * own, own

    def rows(
        self, solved: torch.Tensor, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`lambda` times the solution."""
        return solved[start:stop] * coefficients.mean()


def beside(matrix: TensorVectors, index: int, taken: torch.Tensor, rank: int) -> Triplets:
    """The first singular triplets of tau_k without its part in the directions that are taken."""
    product = matrix.low_rank(index)
    if product is None:
        tau = matrix.matrix(index)
        length = float(tau.square().sum().sqrt())
        return singular_triplets(tau - taken @ (taken.mT @ tau), rank, length)
    left, right = product.left, product.right
    length = float(left.square().sum().sqrt() * right.square().sum().sqrt())
    return product_triplets(LowRank(left - taken @ (taken.mT @ left), right), rank, length)
