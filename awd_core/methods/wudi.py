"""WUDI: a merged matrix that differs little from every expert on that expert's own rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.method import MatrixMethod, Memory, matrixwise, sum_over_experts
from awd_core.own_rows import adam, of_task_vectors
from awd_core.vectors import TensorVectors


@dataclass(frozen=True)
class Wudi(MatrixMethod):
    """Adam from `m_0 = sum_k tau_k` on `sum_k ||(m - tau_k) tau_k^T||^2 / ||tau_k||^2`.

    The number of steps regularises: the minimum itself merges worse than an early stop. Adam moves
    every entry by about `lr` a step whatever the task vectors' size, so in `absolute` units (the
    paper's) the result depends on that size; in units of the `rms` of the task vectors it does not.

    Cost: `steps` products (m, n) (n, n) for every matrix.
    """

    key: ClassVar[str] = "wudi"
    title: ClassVar[str] = "WUDI"
    source: ClassVar[str] = "Cheng et al., Whoever Started the Interference, arXiv 2503.08099"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, m,\quad m \approx \arg\min_m \sum_k"
        r" \frac{\|(m - \tau_k) \tau_k^\top\|_F^2}{\|\tau_k\|_F^2}"
    )
    memory: ClassVar[Memory] = matrixwise("9 m n + 3 n^2", lambda k, m, n: 9 * m * n + 3 * n * n)
    one_coefficient: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0
    scale_equivariant: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {"steps": 300, "lr": 1e-5, "others": "keep-base", "embeddings": "keep-base"},
            note="ViT: linear layers only, the rest stays at the base.",
        ),
        "roberta": Preset(
            {"steps": 300, "lr": 2e-5, "others": "keep-base", "embeddings": "keep-base"},
            note="The authors' setting for RoBERTa.",
        ),
        "fusionbench": Preset(
            {"steps": 400, "lr": 1e-5}, note="Every matrix; the mean of what is none."
        ),
        "scale-free": Preset(
            {"unit": "rms", "lr": 0.04},
            note="Ours: steps relative to the task vectors; near the paper's where their rms is"
            " 2.5e-4.",
        ),
    }

    steps: int = knob(300, low=0, high=10000, help="Steps of Adam.")
    lr: float = knob(1e-5, low=0.0, high=1.0, help="Learning rate of Adam.")
    unit: str = knob(
        "absolute",
        choices=("absolute", "rms"),
        help="Unit of the learning rate: that of the weights, or the mean rms of a matrix's task"
        " vectors.",
    )

    def solve(self, survey: Any, matrix: TensorVectors) -> torch.Tensor:
        """The merged task vector at lambda = 1."""
        total = sum_over_experts(matrix.matrices())
        problem = of_task_vectors(matrix.matrices())
        if problem is None:
            return total
        unit = 1.0 if self.unit == "absolute" else mean_rms(matrix)
        return adam(problem, total, lr=self.lr, steps=self.steps, unit=unit)

    def rows(
        self, solved: torch.Tensor, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`lambda` times the solution."""
        return solved[start:stop] * coefficients.mean()


def mean_rms(matrix: TensorVectors) -> float:
    """Mean over the experts of the root mean square of tau_k."""
    return float(np.mean(sorted(float(tau.square().mean().sqrt()) for tau in matrix.matrices())))
