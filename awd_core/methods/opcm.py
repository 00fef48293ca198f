"""OPCM: experts merged one after the other, each freed of what those before it have filled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.linear_algebra import singular_triplets
from awd_core.method import MatrixMethod, Memory, matrixwise
from awd_core.vectors import Piece, TensorVectors, Vectors


@dataclass(frozen=True)
class Opcm(MatrixMethod):
    """`A_1 = tau_1, A_t = A_{t-1} + P_t(tau_t)`; merged = lambda A_K mean_k ||tau_k|| / ||A_K||.

    P_t leaves of a matrix what lies outside the singular directions that A_{t-1} uses. With
    A_{t-1} = U diag(s) V^T and r the least number of singular values that make up the share
    `alpha` of their sum:

    - `paper`: (I - U_r U_r^T) tau (I - V_r V_r^T), without the diagonal u_i u_i^T tau v_i v_i^T;
    - `fusionbench`: tau - U_r U_r^T tau V_r V_r^T without that diagonal, and r one smaller.

    Vectors and other tensors are summed as they are. Norms are over the whole model, so the scale
    is known after a first reading. The paper scales after every expert; a scale has no effect on
    singular directions, so that one at the end is the same.

    The order of the experts decides the result.

    Cost: 2 (K - 1) eigendecompositions of size min(m, n) for every matrix.
    """

    key: ClassVar[str] = "opcm"
    title: ClassVar[str] = "OPCM"
    source: ClassVar[str] = "Tang et al., Merging Models on the Fly, arXiv 2501.09522"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, \frac{\frac1K \sum_k \|\tau_k\|}{\|A_K\|} A_K,\quad"
        r" A_t = A_{t-1} + P_t(\tau_t)"
    )
    passes: ClassVar[int] = 2
    memory: ClassVar[Memory] = matrixwise(
        "7 m n + 4 min(m, n)^2", lambda k, m, n: 7 * m * n + 4 * min(m, n) ** 2
    )
    one_coefficient: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0
    permutation_equivariant: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset({"projection": "paper"}, note="Two-sided complement, as the paper has it."),
        "fusionbench": Preset(
            {"projection": "fusionbench"},
            note="Only the leading block and the diagonal are cleared; FusionBench's code.",
        ),
    }

    alpha: float = knob(
        0.5, low=0.0, high=1.0, help="Share of the singular values whose directions are taken."
    )
    projection: str = knob(
        "paper",
        choices=("paper", "fusionbench"),
        help="What is cleared of a new task vector: all that touches a taken direction on either"
        " side, or only what touches taken ones on both.",
    )
    others: str = knob(
        "sum",
        choices=("average", "sum", "keep-base"),
        help="What is added where a tensor is no matrix: the mean of the task vectors, their sum,"
        " or nothing.",
    )
    embeddings: str = knob(
        "sum",
        choices=("solve", "average", "sum", "keep-base"),
        help="Whether embeddings and output heads are solved as matrices are, or what instead.",
    )

    def survey(self, model: Vectors) -> float:
        """mean_k ||tau_k|| / ||A_K|| over the whole model."""
        squares, of_sum = np.zeros(model.n_experts), 0.0
        for tensor in model.tensors():
            own, merged = self._squares(tensor)
            squares += own
            of_sum += merged
        return float(np.sqrt(squares).mean() / math.sqrt(of_sum)) if of_sum else 0.0

    def solve(self, survey: float, matrix: TensorVectors) -> torch.Tensor:
        """The merged task vector at lambda = 1."""
        return self._accumulated(matrix) * survey

    def rows(
        self, solved: torch.Tensor, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`lambda` times the solution."""
        return solved[start:stop] * coefficients.mean()

    def prepare(self, survey: float, tensor: TensorVectors) -> tuple[str, Any]:
        """As for every matrix method; the scale instead of a solution where nothing is solved."""
        treatment, solved = super().prepare(survey, tensor)
        return treatment, survey if solved is None else solved

    def combine(
        self, prepared: tuple[str, Any], piece: Piece, coefficients: np.ndarray
    ) -> torch.Tensor:
        """Everything goes by the same scale, what is not solved as well."""
        merged = super().combine(prepared, piece, coefficients)
        treatment, scale = prepared
        return merged if treatment == "solve" else merged * scale

    def _accumulated(self, matrix: TensorVectors) -> torch.Tensor:
        """A_K."""
        matrices = matrix.matrices()
        total = next(matrices).clone()
        for tau in matrices:
            total += self.freed(tau, total)
        return total

    def freed(self, tau: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """P(tau) given A."""
        taken = singular_triplets(total)
        if not len(taken.s):
            return tau
        shares = (taken.s.cumsum(0) / taken.s.sum()).cpu().numpy()
        strict = self.projection == "fusionbench"
        # Rounding may leave the last share just below 1.
        over = shares > self.alpha if strict else shares >= min(self.alpha, float(shares[-1]))
        first = int(np.argmax(over)) if over.any() else 0
        r = first if strict else (first + 1 if self.alpha else 0)
        left, right = taken.u[:, :r], taken.v[:, :r]
        if strict:
            free = tau - left @ (left.mT @ tau @ right) @ right.mT
        else:
            free = tau - left @ (left.mT @ tau)
            free = free - (free @ right) @ right.mT
        left, right = taken.u[:, r:], taken.v[:, r:]
        diagonal = ((left.mT @ tau) * right.mT).sum(1)
        return free - (left * diagonal) @ right.mT

    def _squares(self, tensor: TensorVectors) -> tuple[np.ndarray, float]:
        """||tau_k||^2 and ||A_K||^2 in one tensor."""
        treatment = self.treatment(tensor)
        if treatment == "solve":
            own = [float(tau.square().sum()) for tau in tensor.matrices()]
            return np.array(own), float(self._accumulated(tensor).square().sum())
        gram = tensor.gram[1:, 1:]
        share = {"sum": 1.0, "average": 1 / len(gram), "keep-base": 0.0}[treatment]
        return np.diag(gram).copy(), float(gram.sum()) * share**2
