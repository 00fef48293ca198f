"""TSV-C: every task vector compressed to its first singular directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.knobs import knob
from awd_core.lazy import torch
from awd_core.method import Executor, Memory, MergeMethod, matrixwise
from awd_core.singular_tasks import task_triplets
from awd_core.vectors import Piece, TensorVectors


@dataclass(frozen=True)
class TsvC(MergeMethod):
    """`theta_0 + lambda` (first max(1, int(share min(m, n))) singular triplets of tau_k).

    For the task k that is known; whatever is no matrix is that expert's own. Without a share it is
    1/K, so that K compressed experts need the room of one. A directory of experts, not a merge:
    nothing is shared but the base.

    Cost: one eigendecomposition of size min(m, n) for every matrix.
    """

    key: ClassVar[str] = "tsv_c"
    title: ClassVar[str] = "TSV-C (compression)"
    source: ClassVar[str] = "Gargiulo et al., Task Singular Vectors, arXiv 2412.00081"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = r"\theta_0 + \lambda\, U_{k,r} S_{k,r} V_{k,r}^\top"
    executor: ClassVar[Executor] = "matrix"
    policy: ClassVar[str] = "matrices are cut; everything else is that expert's own"
    memory: ClassVar[Memory] = matrixwise(
        "4 m n + 4 min(m, n)^2", lambda k, m, n: 4 * m * n + 4 * min(m, n) ** 2
    )
    needs_task: ClassVar[bool] = True
    default_coefficient: ClassVar[float] = 1.0

    task: int = knob(0, low=0, high=9999, help="The expert whose model is written, from 0.")
    share: float = knob(
        0.0,
        low=0.0,
        high=1.0,
        help="Share of a matrix's singular directions that are kept; 0 for 1/K.",
    )

    def prepare(self, survey: Any, tensor: TensorVectors) -> torch.Tensor | None:
        """The cut matrix; None for what is no matrix."""
        if not tensor.is_matrix:
            return None
        share = self.share or 1 / tensor.n_experts
        rank = max(1, int(share * min(tensor.shape)))
        return task_triplets(tensor, self.task, rank).matrix()

    def reads_pieces(self, tensor: TensorVectors) -> bool:
        """Only what is no matrix is taken from pieces."""
        return not tensor.is_matrix

    def combine(
        self, prepared: torch.Tensor | None, piece: Piece, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`lambda` times the cut matrix, or the expert's own."""
        own = (
            piece.task_vectors[self.task]
            if prepared is None
            else prepared[piece.start : piece.stop]
        )
        return own * float(coefficients[self.task])
