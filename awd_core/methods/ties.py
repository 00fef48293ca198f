"""TIES merging as the paper defines it: trim over the whole vector, elect signs, disjoint mean."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from awd_core.knobs import knob
from awd_core.magnitude import kth_largest_magnitudes, magnitude_bits
from awd_core.method import MergeMethod, sum_over_experts
from awd_core.vectors import Piece, Vectors


@dataclass(frozen=True)
class TiesState:
    """What a merge needs to know of all vectors.

    Attributes:
        thresholds: Smallest kept |tau_k| of every expert, (K,) float32.
        majority: Sign of the sum of all elected signs; decides exact ties.
    """

    thresholds: np.ndarray
    majority: float


@dataclass(frozen=True)
class Ties(MergeMethod):
    """Trim every vector to its largest share `density`, keep the elected sign, average what agrees.

    1. t_k = tau_k where |tau_k| is among the int(density P) largest of the whole vector, else 0.
       Equal magnitudes at the threshold are all kept.
    2. g = sign(sum_k t_k); where the sum is exactly 0, the sign that most elements elected.
    3. merged = sum of the t_k of sign g / their number; lambda scales it.

    With coefficients of their own, lambda_k multiplies t_k inside the mean of step 3; signs are
    elected without them.

    Cost: two sweeps for exact thresholds, one for the majority sign, one to merge.
    """

    key: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    source: ClassVar[str] = "Yadav et al., TIES-Merging, arXiv 2306.01708"
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \lambda\, \mathrm{mean}_{k:\, \mathrm{sign}(t_k) = g}\, t_k,\quad"
        r" g = \mathrm{sign}\left(\sum_k t_k\right)"
    )
    year: ClassVar[int] = 2023
    passes: ClassVar[int] = 4
    default_coefficient: ClassVar[float] = 1.0

    density: float = knob(
        0.2, low=0.0, high=1.0, help="Share of the largest entries of every task vector kept."
    )

    def survey(self, model: Vectors) -> TiesState:
        """Exact thresholds over the whole vectors, and the majority sign."""
        rank = int(model.n_elements * self.density)
        if rank == 0:
            return TiesState(np.full(model.n_experts, np.inf, np.float32), 1.0)
        thresholds = kth_largest_magnitudes(model.task_vectors, rank, model.n_experts)
        total = sum(
            float(sum_over_experts(_trim(piece, thresholds)).sign().sum())
            for piece in model.task_vectors()
        )
        return TiesState(thresholds, float(np.sign(total)))

    def combine(self, prepared: TiesState, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """Steps 2 and 3 on one piece."""
        trimmed = _trim(piece.task_vectors, prepared.thresholds)
        elected = sum_over_experts(trimmed).sign()
        elected = torch.where(elected == 0, prepared.majority, elected)
        agrees = (trimmed * elected) > 0
        scale = torch.from_numpy(coefficients).to(trimmed.device)[:, None, None]
        total = sum_over_experts(trimmed * agrees * scale)
        return total / agrees.sum(0).clamp(min=1)


def _trim(task_vectors: torch.Tensor, thresholds: np.ndarray) -> torch.Tensor:
    floors = torch.from_numpy(thresholds).view(torch.int32).to(task_vectors.device)
    return task_vectors * (magnitude_bits(task_vectors) >= floors[:, None, None])
