"""DELLA: drop at random, small entries more often, then elect signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core import rank_kernels
from awd_core.consensus import columns, trimmed_and_merged
from awd_core.dropping import keys, l1_ratio, random_numbers, row_sums
from awd_core.errors import RecipeError
from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.method import Executor, MergeMethod, linear_sum
from awd_core.random_masks import BITS
from awd_core.vectors import Numbers, Piece, StoredVectors, TensorVectors, Update


@dataclass(frozen=True)
class Della(MergeMethod):
    """Within an output row the entry of rank r (1 the smallest of n) is kept with probability p_r.

    p_r = density - epsilon + 2 epsilon (r - 1) / (n - 1); a row of one entry has p = density. A
    vector is one row; trailing axes of a convolution are one. What is kept is divided by its own
    p_r (`unbiased`), or scaled to the L1 norm that the tensor had (`l1`, mergekit). Then signs are
    elected and the mean of what agrees is taken, or everything is summed (`elect` off).

    Which entries fall is a function of seed, expert, tensor and position alone. Equal magnitudes
    rank in their order. With density 1 nothing is dropped.

    Cost: one sweep; with `l1` another of the tensor.
    """

    key: ClassVar[str] = "della"
    title: ClassVar[str] = "DELLA"
    source: ClassVar[str] = "Deep et al., DELLA-Merging, arXiv 2406.11617"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \lambda\, \mathrm{mean}_{k:\, \mathrm{sign}(t_k) = g}\, t_k,\quad"
        r" t_k = \frac{m_k \odot \tau_k}{p_k},\quad m_k \sim \mathrm{Bernoulli}(p_k)"
    )
    executor: ClassVar[Executor] = "tensor"
    passes: ClassVar[int] = 2
    presets: ClassVar[dict[str, Preset]] = {
        "paper": Preset(
            {"density": 0.7, "epsilon": 0.07}, 1.1, "Drop rate 0.3, window 0.14, lambda 1.1."
        ),
        "mergekit": Preset(
            {"density": 0.7, "epsilon": 0.15, "rescale": "l1"}, 1.0, "Rescaled to the L1 norm."
        ),
    }
    default_coefficient: ClassVar[float] = 1.1
    permutation_equivariant: ClassVar[bool] = False

    density: float = knob(0.7, low=0.0, high=1.0, help="Mean probability that an entry is kept.")
    epsilon: float = knob(
        0.07, low=0.0, high=0.5, help="How much more often than that the largest entry is kept."
    )
    rescale: str = knob(
        "unbiased", choices=("unbiased", "l1"), help="How what is left makes up for what fell."
    )
    elect: bool = knob(True, help="Whether signs are elected before the entries are merged.")

    def __post_init__(self) -> None:
        """Refuse probabilities outside (0, 1]."""
        if self.density < 1 and not self.epsilon < self.density <= 1 - self.epsilon:
            raise RecipeError(
                "Knobs 'density' and 'epsilon' of method 'della' contradict each other",
                where="knobs",
                received=f"probabilities from {self.density - self.epsilon:g} to"
                f" {self.density + self.epsilon:g}",
                expected="probabilities above 0 and at most 1",
            )

    def prepare(self, survey: Any, tensor: TensorVectors) -> np.ndarray:
        """What is left of every task vector is multiplied with this, (K,)."""
        if self.rescale == "unbiased" or self.density == 1:
            return np.ones(tensor.n_experts)
        ones = np.ones(tensor.n_experts)
        return l1_ratio(tensor.each(lambda piece: self._kept(piece, ones).sums))

    def combine(self, prepared: np.ndarray, piece: Piece, coefficients: np.ndarray) -> Update:
        """Signs elected among what is kept, or its sum."""
        kept = piece if self.density == 1 else self._kept(piece, prepared).piece
        if not self.elect:
            return linear_sum(kept, np.concatenate([[0.0], coefficients]))
        all_of_them = np.zeros(len(coefficients), np.float32)
        return trimmed_and_merged(kept, all_of_them, coefficients, "mean", tie=1.0)

    def _kept(self, piece: Piece, factors: np.ndarray) -> _Kept:
        stored, divides = piece.stored, self.rescale == "unbiased"
        if stored is not None:
            probabilities = self._probabilities(stored.columns)
            return _kept_of_stored(piece, stored, probabilities, divides, factors)
        vectors = piece.task_vectors
        probabilities = torch.from_numpy(self._probabilities(vectors.shape[-1]))
        order = vectors.abs().argsort(dim=-1, stable=True)
        ascending = probabilities.to(vectors.device).expand_as(vectors)
        probability = torch.empty_like(vectors).scatter_(-1, order, ascending)
        kept = vectors * (random_numbers(piece) < probability)
        if divides:
            kept /= probability
        sums = row_sums(vectors.abs()), row_sums(kept.abs())
        kept *= columns(factors, kept)
        return _Kept(Piece(piece.name, piece.start, piece.base, kept, piece.seed), sums)

    def _probabilities(self, n: int) -> np.ndarray:
        """p_r from the smallest entry of a row to the largest, (n,)."""
        if n == 1:
            return np.full(1, self.density)
        grid = torch.linspace(-1, 1, n, dtype=torch.float64).numpy()
        return self.density + self.epsilon * grid


@dataclass(frozen=True)
class _Kept:
    """What is left of a piece, and sums of |v_k| of its rows, (K, rows).

    Attributes:
        piece: What is left, multiplied with a factor of its expert's.
        sums: Before anything is dropped, and after, without that factor.
    """

    piece: Piece
    sums: tuple[np.ndarray, np.ndarray]


def _kept_of_stored(
    piece: Piece,
    stored: StoredVectors,
    probabilities: np.ndarray,
    divides: bool,
    factors: np.ndarray,
) -> _Kept:
    n_experts, n_rows = len(factors), stored.n // stored.columns
    kept, sums = Numbers.empty(n_experts, stored.n), np.empty((2, n_experts, n_rows))
    limits = np.ceil(probabilities * 2.0**BITS).astype(np.uint64)
    divisors = probabilities if divides else np.ones_like(probabilities)
    how = keys(piece, n_experts), limits, divisors, factors, kept.rows, *sums
    if not rank_kernels.drop_by_rank(stored.for_kernels, stored.n, *how):
        stored.require_finite()
    return _Kept(kept.in_place_of(piece, stored), (sums[0], sums[1]))
