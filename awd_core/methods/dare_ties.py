"""DARE in front of TIES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.consensus import MERGES, trimmed_and_merged
from awd_core.dropping import Dropped
from awd_core.knobs import Preset, knob
from awd_core.magnitude import kth_largest_of
from awd_core.method import MergeMethod
from awd_core.vectors import Piece, Update, Vectors


@dataclass(frozen=True)
class DareTies(MergeMethod):
    """Drop with probability p and rescale by 1/(1 - p), then trim, elect and merge as TIES does.

    Where what is kept cancels exactly, + is elected. Cost: two sweeps for exact thresholds over the
    whole vectors, unless density is 1; one to merge.
    """

    key: ClassVar[str] = "dare_ties"
    title: ClassVar[str] = "DARE, TIES"
    source: ClassVar[str] = "Yu et al., Language models are super Mario, arXiv 2311.03099"
    year: ClassVar[int] = 2023
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \mathrm{TIES}\left(\frac{m_k \odot \tau_k}{1 - p}\right),\quad"
        r" m_k \sim \mathrm{Bernoulli}(1 - p)"
    )
    passes: ClassVar[int] = 3
    presets: ClassVar[dict[str, Preset]] = {
        "fusionbench": Preset(
            {"drop": 0.5, "density": 0.2, "merge": "sum"}, 0.5, "Trimmed after dropping, summed."
        ),
        "mergekit": Preset(
            {"drop": 0.5, "density": 1.0, "merge": "sum"},
            1.0,
            "No trimming: signs are elected among all that was not dropped. mergekit rescales to"
            " the L1 norm, this by 1/(1 - p).",
        ),
    }
    default_coefficient: ClassVar[float] = 1.0
    permutation_equivariant: ClassVar[bool] = False

    drop: float = knob(0.5, low=0.0, high=0.999, help="Probability p that an entry is dropped.")
    density: float = knob(
        0.2, low=0.0, high=1.0, help="Share of the largest entries kept after dropping."
    )
    merge: str = knob("mean", choices=MERGES, help="What is made of the entries that agree.")

    def survey(self, model: Vectors) -> np.ndarray:
        """Smallest kept magnitude of every dropped vector, before rescaling, (K,) float32."""
        rank = int(model.n_elements * self.density)
        if rank == 0 or self.density == 1:
            return np.full(model.n_experts, 0.0 if rank else np.inf, np.float32)
        return kth_largest_of(model, rank, lambda piece: Dropped(piece, self.drop))

    def combine(self, prepared: Any, piece: Piece, coefficients: np.ndarray) -> Update:
        """TIES on what was kept."""
        scaled = coefficients / (1 - self.drop)
        return trimmed_and_merged(Dropped(piece, self.drop), prepared, scaled, self.merge, tie=1.0)
