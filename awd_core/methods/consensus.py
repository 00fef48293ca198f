"""Consensus merging: keep the weights that enough experts need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.method import MergeMethod, sum_over_experts, weighted_sum
from awd_core.vectors import Piece


@dataclass(frozen=True)
class Consensus(MergeMethod):
    """Task arithmetic on the weights that at least `agree` experts mark as theirs.

    Expert k marks a weight where |tau_k| >= threshold |sum_j tau_j - tau_k|: its TALL mask. The
    paper tunes the threshold for every task on validation data; here it is one number. With fewer
    experts than `agree`, all have to.
    """

    key: ClassVar[str] = "consensus"
    title: ClassVar[str] = "Consensus task arithmetic"
    source: ClassVar[str] = "Wang et al., TALL masks, arXiv 2405.07813"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \Bigl[\sum_k M_k \ge a\Bigr] \odot \sum_k \lambda_k \tau_k,\quad"
        r" M_k = \Bigl[|\tau_k| \ge t\, \Bigl|\sum_{j \ne k} \tau_j\Bigr|\Bigr]"
    )
    presets: ClassVar[dict[str, Preset]] = {
        "fusionbench": Preset({"threshold": 0.6}, 0.3, "Its configuration for CLIP."),
    }

    threshold: float = knob(
        0.4, low=0.0, high=10.0, help="How large a change must be beside the others' to count."
    )
    agree: int = knob(2, low=0, high=64, help="Experts that must mark a weight; 0 keeps all.")

    def combine(self, prepared: None, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """The sum where enough experts marked it."""
        vectors = piece.task_vectors
        everyone = sum_over_experts(vectors)
        marks = vectors.abs() >= self.threshold * (everyone - vectors).abs()
        enough = marks.sum(0) >= min(self.agree, len(vectors))
        return weighted_sum(coefficients, vectors) * enough
