"""KnOTS: LoRA experts merged by TIES in the singular directions that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.linear_algebra import LowRank, product_triplets, singular_triplets
from awd_core.magnitude import kth_largest_magnitudes, magnitude_bits
from awd_core.method import MatrixMethod, Memory, matrixwise, sum_over_experts
from awd_core.remembered import Remembered
from awd_core.singular_tasks import all_low_rank
from awd_core.vectors import TensorVectors, Vectors


@dataclass(frozen=True)
class Knots(MatrixMethod):
    """TIES on the rows U^T tau_k, rotated back: `U ties(U^T tau_1 ... U^T tau_K)`.

    U are the left singular vectors of [tau_1 ... tau_K] side by side. Trimming is over the rotated
    rows of all matrices together, as TIES trims the whole vector. Signs are elected by the sum of
    the trimmed entries, as in TIES; where it is exactly 0 nothing is elected, so that the sign of a
    singular vector, which is arbitrary, never matters. lambda_k multiplies a task's entries in the
    mean of those that agree.

    For experts that are LoRA adapters, U comes from the factors by QR, of a size that is the sum of
    their ranks. With `density` 1 and experts that agree in every sign it is their mean.

    Cost: three decompositions of every matrix, two of them for the exact thresholds.
    """

    key: ClassVar[str] = "knots"
    title: ClassVar[str] = "KnOTS with TIES"
    source: ClassVar[str] = "Stoica et al., Model merging with SVD to tie the Knots, 2410.19735"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta_0 + U\, \mathrm{TIES}_\lambda(U^\top \tau_1, \dots, U^\top \tau_K),\quad"
        r" [\tau_1 \dots \tau_K] = U S V^\top"
    )
    passes: ClassVar[int] = 3
    memory: ClassVar[Memory] = matrixwise(
        "4 K m n + 4 min(m, K n)^2", lambda k, m, n: 4 * k * m * n + 4 * min(m, k * n) ** 2
    )
    default_coefficient: ClassVar[float] = 0.6
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset({"density": 0.2}, 0.6, "ViT-B/32: the largest 20%, scale .6."),
        "llama": Preset({"density": 1.0}, 0.5, "Llama-3-8B: nothing trimmed, scale .5."),
    }

    density: float = knob(
        0.2, low=0.0, high=1.0, help="Share of the largest rotated entries of every task kept."
    )

    def survey(self, model: Vectors) -> np.ndarray:
        """Smallest kept magnitude of every expert over all rotated matrices, (K,) float32."""

        def rotated() -> Iterator[torch.Tensor]:
            for tensor in model.tensors():
                if self.treatment(tensor) == "solve":
                    yield rotate(tensor)[1]

        return kth_largest_magnitudes(
            rotated, lambda n_elements: int(self.density * n_elements), model.n_experts
        )

    def solve(self, survey: np.ndarray, matrix: TensorVectors) -> Remembered:
        """The trimmed vectors in their common basis, ready for any coefficients."""
        basis, rotated = rotate(matrix)
        floors = torch.from_numpy(survey).view(torch.int32).to(basis.device)
        trimmed = rotated * (magnitude_bits(rotated) >= floors[:, None, None])
        return Remembered(lambda coefficients: basis @ elected_mean(trimmed, coefficients))

    def rows(
        self, solved: Remembered, start: int, stop: int, coefficients: np.ndarray
    ) -> torch.Tensor:
        """Rotated back."""
        return solved(coefficients)[start:stop]


def rotate(tensor: TensorVectors) -> tuple[torch.Tensor, torch.Tensor]:
    """U of `[tau_1 ... tau_K] = U S [V_1 ... V_K]^T`, (rows, r), and U^T tau_k, (K, r, columns)."""
    products = all_low_rank(tensor)
    if products is None:
        found = singular_triplets(torch.cat(list(tensor.matrices()), dim=1))
    else:
        right = torch.block_diag(*(task.right for task in products))
        found = product_triplets(LowRank(torch.cat([task.left for task in products], dim=1), right))
    rotated = (found.v * found.s).mT
    return found.u, torch.stack(rotated.split(tensor.shape[1], dim=1))


def elected_mean(trimmed: torch.Tensor, coefficients: np.ndarray) -> torch.Tensor:
    """Mean of the lambda_k t_k that have the sign of sum_k t_k; 0 where that sum is 0."""
    agrees = (trimmed * sum_over_experts(trimmed).sign()) > 0
    scales = torch.from_numpy(coefficients).to(trimmed.device)
    agreeing = (vector * which for vector, which in zip(trimmed, agrees, strict=True))
    total = sum_over_experts(scale * part for scale, part in zip(scales, agreeing, strict=True))
    return total / agrees.sum(0).clamp(min=1)
