"""Averaging weighted by how far every expert moved."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.knobs import knob
from awd_core.method import GramMethod


@dataclass(frozen=True)
class DeltaWeighted(GramMethod):
    """In every tensor `lambda sum_k w_k tau_k`, w_k proportional to ||tau_k||^g. Ours.

    Made after the description of CoDiEmb's fusion, whose formula is not published. g = 0 is lambda
    times the average; a large g takes every tensor from the expert that changed it most.
    """

    key: ClassVar[str] = "delta_weighted"
    title: ClassVar[str] = "Delta-weighted average (ours)"
    source: ClassVar[str] = "Ours, after CoDiEmb, arXiv 2508.11442"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \sum_k \lambda_k \frac{\|\tau_k\|^g}{\sum_j \|\tau_j\|^g} \tau_k"
        r" \quad\text{per tensor}"
    )
    default_coefficient: ClassVar[float] = 1.0

    power: float = knob(1.0, low=0.0, high=10.0, help="How much the larger change counts, g.")

    def multipliers(self, gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """`lambda_k ||tau_k||^g / sum_j ||tau_j||^g`; 0 where nothing changed."""
        norms = np.sqrt(np.diag(gram)[1:])
        powers = (norms / (norms.max() or 1.0)) ** self.power * (norms > 0)
        return np.concatenate([[0.0], coefficients * powers / (powers.sum() or 1.0)])
