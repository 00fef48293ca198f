"""Task arithmetic."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.method import LinearMethod


@dataclass(frozen=True)
class TaskArithmetic(LinearMethod):
    """`theta = theta_0 + sum_k lambda_k tau_k`."""

    key: ClassVar[str] = "task_arithmetic"
    title: ClassVar[str] = "Task arithmetic"
    source: ClassVar[str] = "Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089"
    year: ClassVar[int] = 2022
    formula: ClassVar[str] = r"\theta = \theta_0 + \sum_k \lambda_k \tau_k"

    def multipliers(self, coefficients: np.ndarray) -> np.ndarray:
        """lambda_k itself."""
        return coefficients
