"""MagMax: every weight from the expert that moved it most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.consensus import columns
from awd_core.knobs import Preset
from awd_core.lazy import torch
from awd_core.method import MergeMethod
from awd_core.vectors import Piece


@dataclass(frozen=True)
class MagMax(MergeMethod):
    """`lambda tau_k` with k the expert of largest |tau_k| there; of equals the last one."""

    key: ClassVar[str] = "magmax"
    title: ClassVar[str] = "MagMax"
    source: ClassVar[str] = "Marczak et al., MagMax, arXiv 2407.06322"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \lambda\, \tau_{k^*},\quad k^* = \arg\max_k |\tau_k|"
        r" \quad\text{per weight}"
    )
    presets: ClassVar[dict[str, Preset]] = {"paper": Preset({}, 0.5, "Eight tasks, lambda 0.5.")}
    default_coefficient: ClassVar[float] = 0.5
    # Only where two experts move a weight by the same amount in opposite directions.
    permutation_equivariant: ClassVar[bool] = False

    def combine(self, prepared: None, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """The largest, scaled by its expert's lambda."""
        vectors = piece.task_vectors
        # argmax takes the first of equals; reversed, that is the last expert.
        last = len(vectors) - 1 - vectors.abs().flip(0).argmax(0, keepdim=True)
        return (vectors * columns(coefficients, vectors)).gather(0, last)[0]
