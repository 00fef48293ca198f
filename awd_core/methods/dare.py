"""DARE: drop at random, rescale what is left, add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from awd_core.dropping import Dropped, Rescaling, l1_rescaling
from awd_core.knobs import Preset, knob
from awd_core.method import Executor, MergeMethod, linear_sum
from awd_core.vectors import Piece, TensorVectors, Update


@dataclass(frozen=True)
class Dare(MergeMethod):
    """Every entry of every tau_k is dropped with probability p; the others are rescaled and summed.

    `unbiased` multiplies what is left by 1/(1 - p), so that its expectation is tau_k. `l1` gives
    what is left of a tensor the L1 norm that the tensor had, as mergekit does. Which entries fall
    is a function of seed, expert, tensor and position alone.

    Cost: one sweep; with `l1` another of the tensor.
    """

    key: ClassVar[str] = "dare"
    title: ClassVar[str] = "DARE, linear"
    source: ClassVar[str] = "Yu et al., Language models are super Mario, arXiv 2311.03099"
    year: ClassVar[int] = 2023
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \sum_k \lambda_k \frac{m_k \odot \tau_k}{1 - p},\quad"
        r" m_k \sim \mathrm{Bernoulli}(1 - p)"
    )
    executor: ClassVar[Executor] = "tensor"
    passes: ClassVar[int] = 2
    presets: ClassVar[dict[str, Preset]] = {
        "fusionbench": Preset({"drop": 0.5, "rescale": "unbiased"}, 0.3, "Rescaled by 1/(1 - p)."),
        "mergekit": Preset({"drop": 0.5, "rescale": "l1"}, 1.0, "Rescaled to the L1 norm."),
    }
    permutation_equivariant: ClassVar[bool] = False

    drop: float = knob(0.5, low=0.0, high=0.999, help="Probability p that an entry is dropped.")
    rescale: str = knob(
        "unbiased", choices=("unbiased", "l1"), help="How what is left makes up for what fell."
    )

    def prepare(self, survey: Any, tensor: TensorVectors) -> Rescaling:
        """What makes up for what fell."""
        if self.rescale == "unbiased":
            return Rescaling(np.full(tensor.n_experts, 1 / (1 - self.drop)))
        return l1_rescaling(tensor, self.drop)

    def combine(self, prepared: Rescaling, piece: Piece, coefficients: np.ndarray) -> Update:
        """The rescaled sum of what is kept."""
        multipliers = np.concatenate([[0.0], prepared.factors * coefficients])
        dropped = Dropped(piece, self.drop, prepared.kept.get(piece.start))
        return linear_sum(dropped, multipliers)
