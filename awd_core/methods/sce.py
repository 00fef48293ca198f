"""SCE: select what varies, calculate weights, erase the minority's signs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core import merge_kernels
from awd_core.consensus import Election
from awd_core.dropping import row_sums, total
from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.magnitude import kth_largest_magnitudes, magnitude_bits
from awd_core.method import Executor, MergeMethod
from awd_core.vectors import Piece, TensorVectors, Update


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

    Cost: four sweeps of the tensor, one with select 1; one to merge.
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
    passes: ClassVar[int] = 5
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
        if floor == 0.0:
            energy = np.diag(tensor.gram)[1:]
        else:
            energy = total(tensor.each(lambda piece: _energies(piece, floor)))
        return SceState(floor, energy / (energy.sum() or 1.0))

    def combine(self, prepared: SceState, piece: Piece, coefficients: np.ndarray) -> Update:
        """Steps 3 and 4 on one piece."""
        ones, weights = np.ones_like(coefficients), prepared.weights
        all_of_them = np.zeros(len(ones), np.float32)
        merged = Election(all_of_them, ones, weights * coefficients, weights).of(piece)
        if self.fuse == "all" or prepared.floor == 0.0:
            return merged
        return torch.as_tensor(merged) * _selected(piece, prepared.floor)

    def _floor(self, tensor: TensorVectors) -> float:
        if self.select == 1:
            return 0.0

        def sweep() -> Iterator[torch.Tensor]:
            return tensor.each(lambda piece: _deviation(piece)[None])

        rank = int(self.select * sum(int((one > 0).sum()) for one in sweep()))
        return float(kth_largest_magnitudes(sweep, rank, 1)[0]) if rank else float("inf")


def _energies(piece: Piece, floor: float) -> np.ndarray:
    """`||tau_k||^2` of every row over what is selected, (K, rows)."""
    chosen, stored = _selected(piece, floor), piece.stored
    if stored is None:
        return row_sums((piece.task_vectors * chosen).square())
    flat = chosen.flatten().to(torch.float64).numpy()
    squares = np.empty((len(stored.packed.codes) - 1, stored.n // stored.columns))
    if not merge_kernels.chosen_squares(stored.for_kernels, stored.n, flat, squares):
        stored.require_finite()
    return squares


def _deviation(piece: Piece) -> torch.Tensor:
    """Standard deviation over the experts, (rows, columns): the variance, for float32's range.

    By the distances to the first expert: where all are equal it is exactly 0.
    """
    stored = piece.stored
    if stored is not None:
        return torch.from_numpy(stored.filled(merge_kernels.deviations))
    vectors = piece.task_vectors
    squares, sums = torch.zeros_like(piece.base), torch.zeros_like(piece.base)
    for distance in vectors[1:] - vectors[0]:
        squares += distance.square()
        sums += distance
    n_experts = len(vectors)
    return ((squares - sums.square() / n_experts) / n_experts).clamp(min=0).sqrt()


def _selected(piece: Piece, floor: float) -> torch.Tensor:
    """Whether an entry is among those of largest variance, (rows, columns)."""
    bits = torch.tensor(floor, dtype=torch.float32).view(torch.int32)
    return magnitude_bits(_deviation(piece)) >= bits.to(piece.base.device)
