"""SCE: select what varies, calculate weights, erase the minority's signs."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch

from awd_core.consensus import columns, elect
from awd_core.dropping import row_sums, total
from awd_core.knobs import Preset, knob
from awd_core.magnitude import kth_largest_magnitudes, magnitude_bits
from awd_core.method import Executor, MergeMethod, sum_over_experts
from awd_core.vectors import Piece, TensorVectors


@dataclass(frozen=True)
class SceState:
    """What a piece needs to know of its tensor.

    Attributes:
        floor: Smallest selected standard deviation, float32; infinity where nothing is selected.
        weights: Weight of every expert, (K,), summing to 1; 0 where nothing changed.
    """

    floor: float
    weights: np.ndarray


@dataclass(frozen=True)
class Sce(MergeMethod):
    """All within one tensor: select by variance, weigh by energy, erase by sign, average.

    1. Selected are the int(select m) entries of largest variance over the experts, m the number of
       entries that vary at all; equal ones at the threshold together.
    2. w_k = sum of tau_k^2 over what is selected, divided by the sum over the experts.
    3. Entries whose sign is not that of the sum over experts are erased (0 counts as +).
    4. merged = sum w_k tau_k / sum w_k over what is left, of the selected entries, or of all
       (`fuse`).

    The weights are ratios, however small the task vectors: mergekit takes equal ones where the mean
    squares sum to less than 1e-6, which those of a fine-tuned language model do.

    Cost: three sweeps of the tensor, one with select 1; one to merge.
    """

    key: ClassVar[str] = "sce"
    title: ClassVar[str] = "SCE"
    source: ClassVar[str] = "Wan et al., FuseChat, arXiv 2408.07990"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \lambda \frac{\sum_{k \in A} w_k \tau_k}{\sum_{k \in A} w_k},\quad"
        r" w_k = \frac{\|S \odot \tau_k\|^2}{\sum_j \|S \odot \tau_j\|^2},\quad"
        r" A = \{k: \mathrm{sign}\, \tau_k = \mathrm{sign} \textstyle\sum_j \tau_j\}"
        r" \quad\text{per tensor}"
    )
    executor: ClassVar[Executor] = "tensor"
    passes: ClassVar[int] = 4
    presets: ClassVar[dict[str, Preset]] = {
        "paper": Preset(
            {"select": 0.1, "fuse": "all"},
            1.0,
            "Selection decides weights only.",
        ),
        "mergekit": Preset(
            {"select": 1.0, "fuse": "selected"}, 1.0, "What is not selected stays as in the base."
        ),
    }
    default_coefficient: ClassVar[float] = 1.0

    select: float = knob(1.0, low=0.0, high=1.0, help="Share of the varying entries selected.")
    fuse: str = knob(
        "selected", choices=("selected", "all"), help="Which entries are merged in the end."
    )

    def prepare(self, survey: Any, tensor: TensorVectors) -> SceState:
        """The variance from which an entry is selected, and the weights."""
        floor = self._floor(tensor)

        def energies(piece: Piece) -> np.ndarray:
            vectors = piece.task_vectors
            return row_sums((vectors * _selected(vectors, floor)).square())

        energy = total(tensor.each(energies))
        return SceState(floor, energy / (energy.sum() or 1.0))

    def combine(self, prepared: SceState, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """Steps 3 and 4 on one piece."""
        vectors = piece.task_vectors
        if self.fuse == "selected":
            vectors = vectors * _selected(vectors, prepared.floor)
        agrees = (vectors * elect(vectors, 1.0)) > 0
        weights = columns(prepared.weights, vectors) * agrees
        merged = sum_over_experts(vectors * weights * columns(coefficients, vectors))
        divisor = sum_over_experts(weights)
        return merged / torch.where(divisor > 0, divisor, 1.0)

    def _floor(self, tensor: TensorVectors) -> float:
        if self.select == 1:
            return 0.0

        def deviations() -> Iterator[torch.Tensor]:
            return tensor.each(lambda piece: _deviation(piece.task_vectors)[None])

        varying = sum(tensor.each(lambda piece: int((_deviation(piece.task_vectors) > 0).sum())))
        rank = int(self.select * varying)
        if rank == 0:
            return float("inf")
        return float(kth_largest_magnitudes(deviations, rank, 1)[0])


def _deviation(vectors: torch.Tensor) -> torch.Tensor:
    """Standard deviation over the experts, (rows, columns): the variance, for float32's range.

    From pairs, `var = sum_{i<j} (tau_i - tau_j)^2 / K^2`: equal entries then vary by exactly 0.
    """
    pairs = combinations(vectors, 2)
    squares = [(left - right).square() for left, right in pairs] or [torch.zeros_like(vectors[0])]
    return (sum_over_experts(squares) / len(vectors) ** 2).sqrt()


def _selected(vectors: torch.Tensor, floor: float) -> torch.Tensor:
    if floor == 0.0:
        return torch.ones_like(vectors[0], dtype=torch.bool)
    bits = torch.tensor(floor, dtype=torch.float32).view(torch.int32)
    return magnitude_bits(_deviation(vectors)) >= bits.to(vectors.device)
