"""DELLA: drop at random, small entries more often, then elect signs."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from awd_core.consensus import columns, disjoint, elect
from awd_core.dropping import l1_ratio, random_numbers
from awd_core.errors import RecipeError
from awd_core.knobs import Preset, knob
from awd_core.method import Executor, MergeMethod, sum_over_experts
from awd_core.vectors import Piece, TensorVectors


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
        return l1_ratio(tensor, self._kept)

    def combine(self, prepared: np.ndarray, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """Signs elected among what is kept, or its sum."""
        kept = self._kept(piece) * columns(prepared, piece.base)
        if self.elect:
            return disjoint(kept, elect(kept, 1.0), coefficients, "mean")
        return sum_over_experts(kept * columns(coefficients, piece.base))

    def _kept(self, piece: Piece) -> torch.Tensor:
        if self.density == 1:
            return piece.task_vectors
        probability = self._probability(piece.task_vectors)
        kept = piece.task_vectors * (random_numbers(piece) < probability)
        return kept / probability if self.rescale == "unbiased" else kept

    def _probability(self, task_vectors: torch.Tensor) -> torch.Tensor:
        n = task_vectors.shape[-1]
        if n == 1:
            return torch.full_like(task_vectors, self.density)
        order = task_vectors.abs().argsort(dim=-1, stable=True)
        grid = torch.linspace(-1, 1, n, dtype=torch.float64, device=task_vectors.device)
        ascending = (self.density + self.epsilon * grid).expand_as(task_vectors)
        return torch.empty_like(task_vectors).scatter_(-1, order, ascending)
