"""Model Breadcrumbs over whole tensors, as mergekit has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core import merge_kernels
from awd_core.consensus import trim
from awd_core.knobs import Preset, knob
from awd_core.magnitude import exact_floors, kth_largest_of
from awd_core.method import Executor, MergeMethod, weighted_sum
from awd_core.vectors import Piece, TensorVectors, Update


@dataclass(frozen=True)
class BreadcrumbsTensor(MergeMethod):
    """In every tensor of n entries the int(outliers n) largest fall, the next int(density n) stay.

    Where both together are more than n, fewer outliers fall. Equal magnitudes at a threshold
    stay or fall together. Where int(outliers n) is 0 no outlier falls.

    Cost: up to four sweeps of the tensor for two exact thresholds, one to merge.
    """

    key: ClassVar[str] = "breadcrumbs_tensor"
    title: ClassVar[str] = "Breadcrumbs, by tensor"
    source: ClassVar[str] = "mergekit, github.com/arcee-ai/mergekit; after arXiv 2312.06795"
    year: ClassVar[int] = 2023
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \sum_k \lambda_k\, m_k \odot \tau_k,\quad"
        r" m_k = [\text{rank of } |\tau_k| \text{ in its tensor}"
        r" \in (\gamma n, \gamma n + \beta n]]"
    )
    executor: ClassVar[Executor] = "tensor"
    passes: ClassVar[int] = 5
    presets: ClassVar[dict[str, Preset]] = {
        "mergekit": Preset({"density": 0.9, "outliers": 0.01}, 1.0, "Its usual density and gamma."),
    }

    density: float = knob(0.9, low=0.0, high=1.0, help="Share of a tensor that is kept.")
    outliers: float = knob(
        0.01, low=0.0, high=1.0, help="Share of the largest entries of a tensor that falls."
    )

    def prepare(self, survey: Any, tensor: TensorVectors) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes from which an entry is kept, and from which it is an outlier, (K,) each."""
        n = tensor.n_elements
        keep = int(self.density * n)
        outliers = min(int(self.outliers * n), n - keep)

        def at(rank: int) -> np.ndarray:
            return kth_largest_of(tensor, rank)

        nothing = np.full(tensor.n_experts, np.inf, np.float32)
        floor = at(keep + outliers) if keep else nothing
        return floor, at(outliers) if outliers else nothing

    def combine(
        self, prepared: tuple[np.ndarray, np.ndarray], piece: Piece, coefficients: np.ndarray
    ) -> Update:
        """The weighted sum of what is kept."""
        floors, outliers = prepared
        stored = piece.stored
        if stored is None:
            vectors = piece.task_vectors
            return weighted_sum(coefficients, trim(vectors, floors) - trim(vectors, outliers))
        between = exact_floors(floors), exact_floors(outliers)
        return stored.filled(merge_kernels.sum_between, *between, coefficients)
