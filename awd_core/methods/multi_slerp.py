"""Spherical mean of any number of task vectors."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from awd_core.method import GramMethod, shares


@dataclass(frozen=True)
class MultiSlerp(GramMethod):
    """In every tensor the weighted mean direction of the task vectors, at their mean length.

    mergekit's multislerp with a base model: it projects the unit vectors u_k on the tangent space
    at their normalised weighted mean m, averages there and goes back. The averaged tangent
    sum_k w_k (u_k - <u_k, m> m) is 0, because m has the direction of sum_k w_k u_k; what is left is
    m times the mean length. Where the directions cancel the result is 0.
    """

    key: ClassVar[str] = "multi_slerp"
    title: ClassVar[str] = "Multi-SLERP"
    source: ClassVar[str] = "mergekit, github.com/arcee-ai/mergekit"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \Bigl(\sum_k w_k \|\tau_k\|\Bigr)"
        r" \frac{\sum_k w_k u_k}{\|\sum_k w_k u_k\|},\quad u_k = \frac{\tau_k}{\|\tau_k\|},"
        r" \sum_k w_k = 1 \quad\text{per tensor}"
    )
    coefficients_are: ClassVar[Literal["scales", "weights"]] = "weights"
    default_coefficient: ClassVar[float] = 1.0

    def multipliers(self, gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """`w_k / ||tau_k||`, scaled to the mean length."""
        inner, weights = gram[1:, 1:], shares(coefficients)
        norms = np.sqrt(np.diag(inner))
        units = np.divide(weights, norms, out=np.zeros_like(norms), where=norms > 0)
        length = np.sqrt(max(0.0, units @ inner @ units))
        scale = (weights @ norms) / length if length > 1e-8 else 0.0
        return np.concatenate([[0.0], scale * units])
