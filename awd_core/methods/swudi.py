"""SWUDI: WUDI's descent in closed form, stopped at a time and cut to the first directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.method import MatrixMethod, Memory, matrixwise, sum_over_experts
from awd_core.own_rows import of_task_vectors
from awd_core.vectors import TensorVectors


@dataclass(frozen=True)
class Swudi(MatrixMethod):
    """Gradient flow m' = -(m C - D) from m_0 = sum_k tau_k for a time t, in eigenvectors of C.

    C = sum_k tau_k^T tau_k / ||tau_k||^2 = V diag(e) V^T and D = sum_k tau_k tau_k^T tau_k /
    ||tau_k||^2, as in WUDI. m(t) = m_0 - m_0 V diag(f) V^T + D V diag(f / e) V^T with
    f(e) = 1 - exp(-e t), and f = 0 outside the ceil(rank n) largest e. C has no unit, so neither
    has t.

    Cost: one eigendecomposition of size n for every matrix of n columns.
    """

    key: ClassVar[str] = "swudi"
    title: ClassVar[str] = "SWUDI"
    source: ClassVar[str] = "WUDI (arXiv 2503.08099) in closed form, from the code of MLLMerging"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, (m_0 - m_0 V f V^\top + D V \tfrac{f}{e} V^\top),\quad"
        r" f = 1 - e^{-e t}"
    )
    memory: ClassVar[Memory] = matrixwise("6 m n + 5 n^2", lambda k, m, n: 6 * m * n + 5 * n * n)
    one_coefficient: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0
    presets: ClassVar[Mapping[str, Preset]] = {
        "code": Preset({"time": 300.0, "rank": 0.65}, note="Defaults of the function."),
        "clip": Preset({"time": 1300.0, "rank": 0.65}, note="The authors' setting for ViT-B/32."),
        "llm": Preset(
            {"time": 300.0, "rank": 0.85}, 0.2, "The authors' setting for language models."
        ),
    }

    time: float = knob(300.0, low=0.0, high=1e9, help="Time t of the flow, without unit.")
    rank: float = knob(
        0.65, low=0.0, high=1.0, help="Share of the eigendirections in which anything moves."
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
        moved = math.ceil(self.rank * matrix.shape[1])

        def share(values: torch.Tensor) -> torch.Tensor:
            f = -torch.expm1(-values * self.time)
            f[moved:] = 0.0
            return f

        return problem.filtered(m, share)

    def rows(
        self, solved: torch.Tensor, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`lambda` times the solution."""
        return solved[start:stop] * coefficients.mean()
