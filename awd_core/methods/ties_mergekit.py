"""TIES as mergekit defines it: every tensor trimmed by itself, weights before the election."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from awd_core.consensus import Election
from awd_core.knobs import knob
from awd_core.magnitude import kth_largest_of
from awd_core.method import Executor, MergeMethod
from awd_core.vectors import Piece, TensorVectors, Update


@dataclass(frozen=True)
class TiesMergekit(MergeMethod):
    """Trim, weigh, elect, mean, all within one tensor. The coefficients are weights w_k.

    1. t_k = tau_k where |tau_k| is among the int(density n) largest of the tensor, else 0.
       At least one is kept. Equal magnitudes at the threshold are all kept, where mergekit
       leaves some out.
    2. g = sign(sum_k w_k t_k), + where the sum is 0.
    3. merged = scale sum of the w_k t_k of sign g, divided by the sum of their w_k.

    Cost: two sweeps of the tensor for exact thresholds, one to merge.
    """

    key: ClassVar[str] = "ties_mergekit"
    title: ClassVar[str] = "TIES, as in mergekit"
    source: ClassVar[str] = "mergekit, github.com/arcee-ai/mergekit; after arXiv 2306.01708"
    year: ClassVar[int] = 2023
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + s \frac{\sum_{k \in A} w_k t_k}{\sum_{k \in A} w_k},\quad"
        r" A = \{k: \mathrm{sign}(w_k t_k) = \mathrm{sign}\textstyle\sum_j w_j t_j\}"
        r" \quad\text{per tensor}"
    )
    executor: ClassVar[Executor] = "tensor"
    passes: ClassVar[int] = 3
    coefficients_are: ClassVar[Literal["scales", "weights"]] = "weights"
    default_coefficient: ClassVar[float] = 1.0

    density: float = knob(
        0.5, low=0.0, high=1.0, help="Share of the largest entries of every tensor kept."
    )
    normalize: bool = knob(True, help="Whether to divide by the weights of the experts that agree.")
    scale: float = knob(
        1.0, low=-10.0, high=10.0, help="What the result is multiplied with; mergekit's lambda."
    )

    def prepare(self, survey: Any, tensor: TensorVectors) -> np.ndarray:
        """Smallest kept |tau_k| of every expert, (K,) float32."""
        if self.density == 0 or self.density == 1:
            limit = 0.0 if self.density else np.inf
            return np.full(tensor.n_experts, limit, np.float32)
        rank = max(1, int(self.density * tensor.n_elements))
        return kth_largest_of(tensor, rank)

    def combine(self, prepared: np.ndarray, piece: Piece, coefficients: np.ndarray) -> Update:
        """Steps 2 and 3 on one piece."""
        ones = np.ones_like(coefficients)
        return Election(
            floors=prepared,
            election=coefficients,
            shares=ones,
            divisors=coefficients if self.normalize else None,
            cancelled=1e-12 * float(np.abs(coefficients).sum()),
            scale=self.scale,
        ).of(piece)
