"""Forgetting a task by negation."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.method import LinearMethod


@dataclass(frozen=True)
class Negation(LinearMethod):
    """`theta = theta_0 - sum_k lambda_k tau_k`: the base forgets what the experts learned.

    lambda is tuned until a control task falls to 95 % of the base's score.
    """

    key: ClassVar[str] = "negation"
    title: ClassVar[str] = "Negation"
    source: ClassVar[str] = "Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089"
    year: ClassVar[int] = 2022
    formula: ClassVar[str] = r"\theta = \theta_0 - \sum_k \lambda_k \tau_k"
    default_coefficient: ClassVar[float] = 0.5

    def multipliers(self, coefficients: np.ndarray) -> np.ndarray:
        """-lambda_k."""
        return -coefficients
