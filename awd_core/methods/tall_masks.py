"""TALL masks: the summed task vector, and for each task the entries of it that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import knob
from awd_core.lazy import torch
from awd_core.method import MergeMethod, sum_over_experts
from awd_core.vectors import Piece


@dataclass(frozen=True)
class TallMasks(MergeMethod):
    """`theta_0 + lambda M_k tau_MTL` for the task k that is known, with tau_MTL = sum_j tau_j.

    M_k = [|tau_k| > mask |tau_MTL - tau_k|]: where the merge is near what task k learned, measured
    by how far that task has moved. The authors choose `mask` for each task on validation data from
    .2 to .6.

    This is no single model: what is shared is tau_MTL, one vector; M_k is one bit an entry.
    """

    key: ClassVar[str] = "tall_masks"
    title: ClassVar[str] = "TALL masks"
    source: ClassVar[str] = "Wang et al., Localizing Task Information, arXiv 2405.07813"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, [\,|\tau_k| > \mu\, |\tau_{MTL} - \tau_k|\,] \odot \tau_{MTL},"
        r"\quad \tau_{MTL} = \sum_j \tau_j"
    )
    needs_task: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0

    task: int = knob(0, low=0, high=9999, help="The expert whose model is written, from 0.")
    mask: float = knob(
        0.4, low=0.0, high=10.0, help="How near the merge has to be; larger masks more."
    )

    def combine(self, prepared: Any, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """`lambda M_k tau_MTL`."""
        total, own = sum_over_experts(piece.task_vectors), piece.task_vectors[self.task]
        near = own.abs() > self.mask * (total - own).abs()
        return total * near * float(coefficients[self.task])
