"""PCB-Merging: keep what matters within a task and agrees between tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.consensus import columns
from awd_core.knobs import Preset, knob
from awd_core.lazy import torch
from awd_core.magnitude import kth_largest_of
from awd_core.method import MergeMethod, sum_over_experts
from awd_core.order_statistics import kth_largest_values
from awd_core.vectors import Piece, Vectors


@dataclass(frozen=True)
class PcbState:
    """Order statistics of the whole vectors, each (K,) float32.

    Attributes:
        low: Magnitudes below it count as it.
        high: Magnitudes above it count as it.
        floor: Scores up to it count as 0.
        top: The largest score.
    """

    low: np.ndarray
    high: np.ndarray
    floor: np.ndarray
    top: np.ndarray


@dataclass(frozen=True)
class Pcb(MergeMethod):
    """Average of the task vectors, every entry weighted by its score among the best of its expert.

    As the authors' code has it; the paper writes two softmaxes.

    1. a_k = |tau_k| held between its `clip` and 1 - `clip` quantiles over the whole vector.
    2. score_k = exp(K minmax(a_k)^2) tanh(tau_k c), with c = sum_j tau_j, or with `cross`
       normalised c = sum_j sign(tau_j) minmax(a_j).
    3. s_k: the scores, from their 1 - `keep` quantile at 0 to their largest at 1.
    4. merged = sum_k lambda_k sign(tau_k) a_k s_k / sum_k s_k.

    Because of the tanh it is not scale equivariant. Scores are compared in float32.

    Cost: two sweeps for the quantiles of a, two for those of the scores, one to merge.
    """

    key: ClassVar[str] = "pcb"
    title: ClassVar[str] = "PCB-Merging"
    source: ClassVar[str] = "Du et al., Parameter competition balancing, arXiv 2410.02396"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \frac{\sum_k \lambda_k s_k \odot \tau_k}{\sum_k s_k},\quad"
        r" s_k = \mathrm{top}_r\left(e^{K \|\tau_k\|_{\text{minmax}}^2}"
        r" \tanh\bigl(\tau_k \textstyle\sum_j \tau_j\bigr)\right)"
    )
    passes: ClassVar[int] = 7
    presets: ClassVar[dict[str, Preset]] = {
        "paper": Preset({"keep": 0.1, "clip": 1e-4}, 1.0, "The authors' short script."),
        "vision": Preset(
            {"keep": 0.05, "clip": 0.01, "cross": "normalised"}, 1.2, "The authors' CLIP script."
        ),
    }
    default_coefficient: ClassVar[float] = 1.0
    scale_equivariant: ClassVar[bool] = False

    keep: float = knob(0.1, low=0.0, high=1.0, help="Share of best scores that count.")
    clip: float = knob(
        1e-4, low=0.0, high=0.49, help="Share of magnitudes at either end that is clipped."
    )
    cross: str = knob(
        "raw", choices=("raw", "normalised"), help="What the agreement of experts is measured on."
    )

    def survey(self, model: Vectors) -> PcbState:
        """Quantiles of magnitudes and scores."""
        n, n_experts = model.n_elements, model.n_experts

        def magnitude(index: int) -> np.ndarray:
            return kth_largest_of(model, n - index)

        low, high = magnitude(int(n * self.clip)), magnitude(int(n * (1 - self.clip) - 1))

        def scores() -> Iterator[torch.Tensor]:
            return model.each(lambda piece: self._scores(piece.task_vectors, low, high))

        n_zeros = n - sum(tensor.n_elements for tensor in model.tensors())
        rank = n - min(int(n * (1 - self.keep)), n - 1)
        floor, top = (kth_largest_values(scores, [r] * n_experts, n_zeros) for r in (rank, 1))
        return PcbState(low, high, floor, top)

    def combine(self, prepared: PcbState, piece: Piece, coefficients: np.ndarray) -> torch.Tensor:
        """Step 4 on one piece."""
        vectors = piece.task_vectors
        scores = self._scores(vectors, prepared.low, prepared.high)
        shares = _minmax(scores.double(), prepared.floor, prepared.top)
        held = vectors.sign() * _held(vectors, prepared.low, prepared.high)
        merged = sum_over_experts(held * shares * columns(coefficients, vectors))
        return merged / sum_over_experts(shares).clamp(min=1e-12)

    def _scores(self, vectors: torch.Tensor, low: np.ndarray, high: np.ndarray) -> torch.Tensor:
        normalised = _minmax(_held(vectors, low, high), low, high)
        everyone = vectors.sign() * normalised if self.cross == "normalised" else vectors
        within = (len(vectors) * normalised.square()).exp()
        return (within * (vectors * sum_over_experts(everyone)).tanh()).float()


def _held(vectors: torch.Tensor, low: np.ndarray, high: np.ndarray) -> torch.Tensor:
    return vectors.abs().clamp(columns(low, vectors), columns(high, vectors))


def _minmax(values: torch.Tensor, low: np.ndarray, high: np.ndarray) -> torch.Tensor:
    """From 0 at `low` to 1 at `high`; 0 where they are equal."""
    width = columns(high, values) - columns(low, values)
    above = (values - columns(low, values)).clamp(min=0)
    return above / torch.where(width > 0, width, torch.inf)
