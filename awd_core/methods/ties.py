"""TIES merging as the paper defines it: trim over the whole vector, elect signs, disjoint merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core import merge_kernels
from awd_core.consensus import MERGES, trim, trimmed_and_merged
from awd_core.knobs import Preset, knob
from awd_core.magnitude import exact_floors, kth_largest_of
from awd_core.method import MergeMethod, sum_over_experts
from awd_core.vectors import Piece, Update, Vectors


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
    """Trim every vector to its largest share `density`, keep the elected sign, merge what agrees.

    1. t_k = tau_k where |tau_k| is among the int(density P) largest of the whole vector, else 0.
       Equal magnitudes at the threshold are all kept.
    2. g = sign(sum_k t_k); where the sum is exactly 0, the sign that most elements elected.
    3. merged = mean, sum or largest of the t_k of sign g; lambda scales it.

    With coefficients of their own, lambda_k multiplies t_k inside step 3; signs are elected without
    them. The authors' code and FusionBench's keep one element more than int(density P).

    Cost: two sweeps for exact thresholds, one for the majority sign, one to merge.
    """

    key: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    source: ClassVar[str] = "Yadav et al., TIES-Merging, arXiv 2306.01708"
    year: ClassVar[int] = 2023
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \lambda\, \mathrm{mean}_{k:\, \mathrm{sign}(t_k) = g}\, t_k,\quad"
        r" g = \mathrm{sign}\left(\sum_k t_k\right)"
    )
    passes: ClassVar[int] = 4
    presets: ClassVar[dict[str, Preset]] = {
        "paper": Preset({"density": 0.2, "merge": "mean"}, 1.0, "Without validation data."),
        "fusionbench": Preset(
            {"density": 0.2, "merge": "sum"}, 0.3, "The usual choice for CLIP: summed, at 0.3."
        ),
    }
    default_coefficient: ClassVar[float] = 1.0

    density: float = knob(
        0.2, low=0.0, high=1.0, help="Share of the largest entries of every task vector kept."
    )
    merge: str = knob("mean", choices=MERGES, help="What is made of the entries that agree.")

    def survey(self, model: Vectors) -> TiesState:
        """Exact thresholds over the whole vectors, and the majority sign."""
        rank = int(model.n_elements * self.density)
        if rank == 0:
            return TiesState(np.full(model.n_experts, np.inf, np.float32), 1.0)
        thresholds = kth_largest_of(model, rank)
        floors = exact_floors(thresholds)

        def elected(piece: Piece) -> int:
            if piece.stored is None:
                total = sum_over_experts(trim(piece.task_vectors, thresholds))
                return int(total.sign().sum())
            stored = piece.stored
            return merge_kernels.sum_of_signs(stored.for_kernels, stored.n, floors)

        return TiesState(thresholds, float(np.sign(sum(model.each(elected)))))

    def combine(self, prepared: TiesState, piece: Piece, coefficients: np.ndarray) -> Update:
        """Steps 2 and 3 on one piece."""
        how = prepared.thresholds, coefficients, self.merge, prepared.majority
        return trimmed_and_merged(piece, *how)
