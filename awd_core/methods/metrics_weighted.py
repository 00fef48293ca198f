"""Averaging weighted by how good every expert is."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from awd_core.errors import RecipeError
from awd_core.knobs import knob
from awd_core.method import LinearMethod, shares


@dataclass(frozen=True)
class MetricsWeighted(LinearMethod):
    """`theta = sum_k w_k theta_k` with w_k proportional to m_k^p, for metrics m_k > 0.

    The coefficients are the metrics: an accuracy, or a loss, for which 1/m_k^p takes the place of
    m_k^p. p = 0 is the average, a large p the best expert. The paper names weights and one penalty
    factor; that they are a power is our reading.
    """

    key: ClassVar[str] = "metrics_weighted"
    title: ClassVar[str] = "Metrics-weighted average"
    source: ClassVar[str] = "Metrics-Weighted Averaging, arXiv 2504.18580; weights as we read them"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = r"\theta = \frac{\sum_k m_k^p\, \theta_k}{\sum_k m_k^p}"
    coefficients_are: ClassVar[Literal["scales", "weights"]] = "weights"
    default_coefficient: ClassVar[float] = 1.0

    power: float = knob(1.0, low=0.0, high=100.0, help="How much a better metric counts, p.")
    better: str = knob(
        "higher", choices=("higher", "lower"), help="Whether a higher or a lower metric is better."
    )

    def multipliers(self, coefficients: np.ndarray) -> np.ndarray:
        """`m_k^p / sum_j m_j^p`."""
        if not (coefficients > 0).all():
            raise RecipeError(
                "Metrics must be positive",
                where="coefficients",
                received=coefficients.tolist(),
                remedy="Give one accuracy or one loss above 0 for every expert.",
            )
        # Relative to the best, so that no power overflows.
        logarithms = np.log(coefficients) * (1 if self.better == "higher" else -1)
        return shares(np.exp(self.power * (logarithms - logarithms.max())))
