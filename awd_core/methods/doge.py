"""DOGE: a shared change of all task vectors, learned outside the subspace that tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.linear_algebra import singular_triplets
from awd_core.magnitude import kth_largest_magnitudes, magnitude_bits
from awd_core.method import MatrixMethod, Memory, matrixwise, sum_over_experts
from awd_core.remembered import Remembered
from awd_core.vectors import TensorVectors, Vectors


@dataclass(frozen=True)
class Doge(MatrixMethod):
    """`sum_k lambda_k l_k M_k (tau_k + delta)` with l_k = `scale` / ||tau_k||, for every matrix.

    1. delta, from 0 by Adam, lessens `sum_j sum_rows <tau_j, tau_j - sum_i l_i (tau_i + delta)>^2`,
       inner products row by row. Its gradient is freed of the shared subspace: the first
       int(min(m, n) / `subspace`) left singular vectors of [U_1 ... U_K], where U_k are the first
       int(min(m, n) / K) of tau_k (of a single expert, its own first ones).
    2. M_k keeps the entries where |tau_k| is among the largest share `density` of all solved
       matrices together, exactly that many and those that tie with the smallest of them.

    l_k takes the length out of every task vector: the result has the same size whatever that of the
    task vectors.

    Cost: K + 1 eigendecompositions and `steps` sweeps over K task vectors for every matrix, all
    K in memory.
    """

    key: ClassVar[str] = "doge"
    title: ClassVar[str] = "DOGE"
    source: ClassVar[str] = "Wei et al., Adaptive Projective Gradient Descent, arXiv 2501.01230"
    year: ClassVar[int] = 2025
    formula: ClassVar[str] = (
        r"\theta_0 + \sum_k \lambda_k \frac{\eta}{\|\tau_k\|} M_k \odot (\tau_k + \delta)"
    )
    passes: ClassVar[int] = 3
    memory: ClassVar[Memory] = matrixwise(
        "(3 K + 8) m n + 4 m^2",
        lambda k, m, n: (3 * k + 8) * m * n + 4 * m * m,
    )
    default_coefficient: ClassVar[float] = 1.0
    scale_equivariant: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "fusionbench": Preset(
            {"others": "keep-base", "embeddings": "keep-base"},
            note="FusionBench's settings; it keeps one entry more.",
        )
    }

    scale: float = knob(0.07, low=0.0, high=10.0, help="eta: length that every task vector gets.")
    subspace: float = knob(
        6.0, low=1.0, high=1000.0, help="The shared subspace has min(m, n) / subspace directions."
    )
    density: float = knob(0.3, low=0.0, high=1.0, help="Share of the largest entries kept.")
    steps: int = knob(400, low=0, high=10000, help="Steps of Adam.")
    lr: float = knob(1e-4, low=0.0, high=1.0, help="Learning rate of Adam.")
    others: str = knob(
        "keep-base",
        choices=("average", "sum", "keep-base"),
        help="What is added where a tensor is no matrix: lambda times the mean of the task vectors,"
        " times their sum, or nothing.",
    )
    embeddings: str = knob(
        "keep-base",
        choices=("solve", "average", "sum", "keep-base"),
        help="Whether embeddings and output heads are solved as matrices are, or what instead.",
    )

    def survey(self, model: Vectors) -> np.ndarray:
        """Smallest kept |tau_k| of every expert over all solved matrices, (K,) float32."""

        def solved() -> Iterator[torch.Tensor]:
            for tensor in model.tensors():
                if self.treatment(tensor) == "solve":
                    yield from tensor.task_vectors()

        return kth_largest_magnitudes(
            solved, lambda n_elements: int(self.density * n_elements), model.n_experts
        )

    def solve(self, survey: np.ndarray, matrix: TensorVectors) -> Remembered:
        """The changed and masked vectors, ready for any coefficients."""
        taus = torch.stack(list(matrix.matrices()))
        scales = [self.scale / norm if norm else 0.0 for norm in map(_norm, taus)]
        changed = taus + self._delta(taus, scales)
        floors = torch.from_numpy(survey).view(torch.int32).to(taus.device)
        changed *= magnitude_bits(taus) >= floors[:, None, None]

        def merged(coefficients: np.ndarray) -> torch.Tensor:
            weighted = zip(coefficients, scales, changed, strict=True)
            return sum_over_experts(float(c) * scale * vector for c, scale, vector in weighted)

        return Remembered(merged)

    def rows(
        self, solved: Remembered, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """`sum_k lambda_k l_k M_k (tau_k + delta)`."""
        return solved(coefficients)[start:stop]

    def _delta(self, taus: torch.Tensor, scales: list[float]) -> torch.Tensor:
        shared = self._shared(taus)
        total = sum(sorted(scales))
        weighted = sum_over_experts(scale * tau for scale, tau in zip(scales, taus, strict=True))
        # Per row: <tau_j, tau_j> - <tau_j, sum_i l_i tau_i>; delta enters with the sum of the l_i.
        by_row = taus.transpose(0, 1).contiguous()
        gaps = (by_row * (by_row - weighted[:, None])).sum(2)
        delta = torch.nn.Parameter(torch.zeros_like(weighted))
        optimiser = torch.optim.Adam([delta], lr=self.lr)
        for _ in range(self.steps):
            now = gaps - total * (by_row @ delta.detach()[:, :, None])[:, :, 0]
            gradient = (now[:, None] @ by_row)[:, 0].mul_(-2 * total)
            delta.grad = gradient - shared @ (shared.mT @ gradient)
            optimiser.step()
        return delta.detach()

    def _shared(self, taus: torch.Tensor) -> torch.Tensor:
        """Left singular vectors of the shared subspace, (rows, r)."""
        room = min(taus.shape[1:])
        rank = int(room / self.subspace)
        if len(taus) == 1:  # All of its directions would weigh the same.
            return singular_triplets(taus[0], rank).u
        firsts = [singular_triplets(tau, room // len(taus)).u for tau in taus]
        return singular_triplets(torch.cat(firsts, dim=1), rank).u


def _norm(tau: torch.Tensor) -> float:
    return float(tau.square().sum().sqrt())
