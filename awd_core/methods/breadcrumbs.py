"""Model Breadcrumbs: drop the outliers and the small entries of every output row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.method import MergeMethod, weighted_sum
from awd_core.vectors import Piece, TensorVectors


@dataclass(frozen=True)
class Breadcrumbs(MergeMethod):
    """In every row of n entries the int(outliers n) largest fall, and all after the next largest.

    Of what is not an outlier int(density n) entries are kept. The paper's beta is the share that is
    masked; here, as in the authors' code, `density` is the share that is kept. A vector is one row,
    a scalar is kept. In short rows int(outliers n) is 0 and no outlier falls. Equal magnitudes rank
    in their order.
    """

    key: ClassVar[str] = "breadcrumbs"
    title: ClassVar[str] = "Breadcrumbs, by row"
    source: ClassVar[str] = "Davari and Belilovsky, Model Breadcrumbs, arXiv 2312.06795"
    year: ClassVar[int] = 2023
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \sum_k \lambda_k\, m_k \odot \tau_k,\quad"
        r" m_k = [\text{rank of } |\tau_k| \text{ in its row} \in (\gamma n, \gamma n + \beta n]]"
    )
    presets: ClassVar[dict[str, Preset]] = {
        "paper": Preset(
            {"density": 0.15, "outliers": 0.006}, 0.2, "Where the authors' search starts."
        ),
    }
    default_coefficient: ClassVar[float] = 0.2

    density: float = knob(0.15, low=0.0, high=1.0, help="Share of a row that is kept.")
    outliers: float = knob(
        0.006, low=0.0, high=1.0, help="Share of the largest entries of a row that falls."
    )

    def prepare(self, survey: Any, tensor: TensorVectors) -> bool:
        """Whether the tensor is a scalar."""
        return tensor.shape == ()

    def combine(self, prepared: bool, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """The weighted sum of what is kept."""
        vectors = piece.task_vectors
        if prepared:
            return weighted_sum(coefficients, vectors)
        n = vectors.shape[-1]
        first = int(self.outliers * n)
        order = vectors.abs().argsort(dim=-1, descending=True, stable=True)
        kept = order[..., first : first + int(self.density * n)]
        masked = torch.zeros_like(vectors).scatter_(-1, kept, vectors.gather(-1, kept))
        return weighted_sum(coefficients, masked)
