"""Simple averaging."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.method import LinearMethod


@dataclass(frozen=True)
class Average(LinearMethod):
    """`theta = 1/K sum_k theta_k`, the same as task arithmetic at lambda = 1/K."""

    key: ClassVar[str] = "average"
    title: ClassVar[str] = "Average"
    source: ClassVar[str] = "Wortsman et al., Model soups, arXiv 2203.05482"
    year: ClassVar[int] = 2022
    formula: ClassVar[str] = r"\theta = \frac{1}{K} \sum_k \theta_k"
    takes_coefficients: ClassVar[bool] = False

    def multipliers(self, coefficients: np.ndarray) -> np.ndarray:
        """1/K for every expert."""
        return np.full(len(coefficients), 1.0 / len(coefficients))
