"""EMR: one vector for all tasks, and for each task a mask and a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.dropping import row_sums
from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.method import MergeMethod, sum_over_experts
from awd_core.vectors import Piece, TensorVectors, Vectors


@dataclass(frozen=True)
class Emr(MergeMethod):
    """Elect, mask, rescale: `theta_0 + lambda l_k M_k tau_uni` for the task k that is known.

    1. g = sign(sum_k tau_k), 0 counting as negative; tau_uni = g max{|tau_k| : sign(tau_k) = g}.
    2. M_k = [tau_k tau_uni > 0].
    3. l_k = sum |tau_k| / sum |M_k tau_uni|, over the whole model (`paper`) or with the mean of
       each tensor instead of its sum (`code`), so that a bias counts as much as a matrix.

    This is no single model: what is shared is tau_uni, one vector; M_k is one bit an entry.
    """

    key: ClassVar[str] = "emr"
    title: ClassVar[str] = "EMR-Merging"
    source: ClassVar[str] = "Huang et al., EMR-Merging, arXiv 2405.17461"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta_0 + \lambda\, l_k M_k \odot \tau_{uni},\quad"
        r" l_k = \frac{\sum |\tau_k|}{\sum |M_k \odot \tau_{uni}|}"
    )
    passes: ClassVar[int] = 2
    needs_task: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset({"rescale": "paper"}, note="Sums over all parameters."),
        "code": Preset({"rescale": "code"}, note="Sums of the means of tensors; FusionBench too."),
    }

    task: int = knob(0, low=0, high=9999, help="The expert whose model is written, from 0.")
    rescale: str = knob(
        "paper",
        choices=("paper", "code"),
        help="Whether l_k is a ratio of sums over all parameters, or of sums of tensors' means.",
    )

    def survey(self, model: Vectors) -> float:
        """l_k of the chosen task."""
        own, shared = [], []
        for tensor in model.tensors():
            sums = self._sums(tensor)
            divisor = tensor.n_elements if self.rescale == "code" else 1
            own.append(sums[0] / divisor)
            shared.append(sums[1] / divisor)
        total = math.fsum(shared)
        return math.fsum(own) / total if total else 0.0

    def combine(self, prepared: float, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """`lambda l_k M_k tau_uni`."""
        masked = self._masked(piece.task_vectors)
        return masked * (prepared * float(coefficients[self.task]))

    def _sums(self, tensor: TensorVectors) -> tuple[float, float]:
        """sum |tau_k| and sum |M_k tau_uni| of one tensor, the same for any pieces."""

        def sums(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
            vectors = piece.task_vectors
            return row_sums(vectors[self.task].abs()), row_sums(self._masked(vectors).abs())

        own, shared = (np.concatenate(parts) for parts in zip(*tensor.each(sums), strict=True))
        return math.fsum(own), math.fsum(shared)

    def _masked(self, task_vectors: torch.Tensor) -> torch.Tensor:
        """M_k tau_uni."""
        elected = torch.where(sum_over_experts(task_vectors) > 0, 1.0, -1.0)
        largest = (task_vectors * elected).clamp(min=0).amax(0)
        return elected * largest * (task_vectors[self.task] * elected > 0)
