"""Weighted averaging."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from awd_core.method import LinearMethod, shares


@dataclass(frozen=True)
class WeightedAverage(LinearMethod):
    """`theta = sum_k w_k theta_k / sum_k w_k`, with the coefficients as weights.

    The same as `theta_0 + sum_k w_k tau_k / sum_k w_k`: the base has no weight of its own.
    """

    key: ClassVar[str] = "weighted_average"
    title: ClassVar[str] = "Weighted average"
    source: ClassVar[str] = "Wortsman et al., Model soups, arXiv 2203.05482"
    year: ClassVar[int] = 2022
    formula: ClassVar[str] = r"\theta = \frac{\sum_k w_k \theta_k}{\sum_k w_k}"
    coefficients_are: ClassVar[Literal["scales", "weights"]] = "weights"
    default_coefficient: ClassVar[float] = 1.0

    def multipliers(self, coefficients: np.ndarray) -> np.ndarray:
        """`w_k / sum_j w_j`."""
        return shares(coefficients)
