"""OptMerge: WUDI on task vectors that are freed of their small singular values first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.linear_algebra import singular_triplets
from awd_core.method import MatrixMethod, Memory, matrixwise, sum_over_experts
from awd_core.own_rows import Task, adam, momentum_share, regression
from awd_core.vectors import TensorVectors

MOMENTUM = 0.9


@dataclass(frozen=True)
class OptMerge(MatrixMethod):
    """Descent on `sum_k ||(m - t_k) p_k^T||^2 / ||tau_k||^2` with denoised targets and proxies.

    r = int(min(m, n) / K). The proxy is p_k = S V^T of the first r singular triplets of tau_k. The
    target t_k is tau_k cut to r triplets; with `centred` the mean task vector is taken off before
    the cut and added again after it. The authors' two codes differ: see the presets.

    Gradient descent with momentum has a closed form in the eigenvectors of sum_k p_k^T p_k /
    ||tau_k||^2, so it costs no steps; Adam has none.

    A matrix with fewer than K rows or columns has no direction to keep: m stays at its start.

    Cost: 1 or 2 eigendecompositions of size min(m, n) an expert, then that of WUDI or SWUDI.
    """

    key: ClassVar[str] = "optmerge"
    title: ClassVar[str] = "OptMerge"
    source: ClassVar[str] = "Wei et al., Unifying Multimodal LLM Capabilities, arXiv 2505.19892"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, m,\quad m \approx \arg\min_m \sum_k"
        r" \frac{\|(m - t_k) V_k S_k\|_F^2}{\|\tau_k\|_F^2}"
    )
    memory: ClassVar[Memory] = matrixwise(
        "9 m n + 5 n^2 + 4 min(m, n)^2",
        lambda k, m, n: 9 * m * n + 5 * n * n + 4 * min(m, n) ** 2,
    )
    one_coefficient: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0
    scale_equivariant: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "full": Preset(
            {"centred": True, "start": "sum", "optimiser": "adam", "lr": 1e-5, "steps": 300},
            0.1,
            "The authors' code for fully fine-tuned experts.",
        ),
        "lora": Preset(
            {"centred": False, "start": "mean", "optimiser": "momentum", "lr": 1e-4, "steps": 300},
            1.0,
            "The authors' code for LoRA experts.",
        ),
    }

    centred: bool = knob(True, help="Whether targets are cut around the mean task vector.")
    start: str = knob(
        "sum", choices=("sum", "mean"), help="m_0: the sum of the task vectors or their mean."
    )
    optimiser: str = knob(
        "adam", choices=("adam", "momentum"), help="Adam, or gradient descent with momentum 0.9."
    )
    lr: float = knob(1e-5, low=0.0, high=1.0, help="Learning rate.")
    steps: int = knob(300, low=0, high=10000, help="Steps of the descent.")
    embeddings: str = knob(
        "average",
        choices=("solve", "average", "sum", "keep-base"),
        help="Whether embeddings and output heads are solved as matrices are, or what instead.",
    )

    def solve(self, survey: Any, matrix: TensorVectors) -> torch.Tensor:
        """The merged task vector at lambda = 1."""
        total = sum_over_experts(matrix.matrices())
        mean = total / matrix.n_experts
        start = total if self.start == "sum" else mean
        rank = min(matrix.shape) // matrix.n_experts
        problem = regression(self._tasks(matrix, mean, rank)) if rank else None
        if problem is None:
            return start
        if self.optimiser == "adam":
            return adam(problem, start, lr=self.lr, steps=self.steps)
        share = partial(momentum_share, lr=self.lr, momentum=MOMENTUM, steps=self.steps)
        return problem.filtered(start, share)

    def rows(
        self, solved: torch.Tensor, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`lambda` times the solution."""
        return solved[start:stop] * coefficients.mean()

    def _tasks(self, matrix: TensorVectors, mean: torch.Tensor, rank: int) -> Iterator[Task]:
        for tau in matrix.matrices():
            own = singular_triplets(tau, rank)
            target = own.matrix()
            if self.centred:
                target = singular_triplets(tau - mean, rank).matrix() + mean
            yield Task(target, (own.v * own.s).mT, float(tau.square().sum()))
