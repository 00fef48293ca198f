"""The Karcher mean of the experts' weights on the sphere."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.knobs import knob
from awd_core.method import GramMethod, whole_weights


@dataclass(frozen=True)
class Karcher(GramMethod):
    """In every tensor the point of the sphere with the least summed squared angle to the experts.

    With unit vectors u_k of the weights: start at their normalised mean u, then repeat
    T = 1/K sum_k a_k / sin(a_k) (u_k - cos(a_k) u), a_k the angle of u_k and u, and
    u <- cos ||T|| u + sin ||T|| T / ||T||. The result has the mean length of the experts. u never
    leaves the span of the u_k: the whole descent is one on K coefficients.
    """

    key: ClassVar[str] = "karcher"
    title: ClassVar[str] = "Karcher mean"
    source: ClassVar[str] = "Karcher, Riemannian center of mass, 1977; as in mergekit"
    year: ClassVar[int] = 1977
    formula: ClassVar[str] = (
        r"\theta = \overline{\|\theta_k\|}\; \arg\min_{\|u\| = 1} \sum_k"
        r" \angle\left(u, \theta_k\right)^2 \quad\text{per tensor}"
    )
    takes_coefficients: ClassVar[bool] = False
    scale_equivariant: ClassVar[bool] = False
    takes_task_vectors: ClassVar[bool] = False

    steps: int = knob(10, low=0, high=1000, help="Most steps of the descent.")
    tolerance: float = knob(
        1e-5, low=0.0, high=1.0, help="Length of a step, in radians, below which it ends."
    )

    def multipliers(self, gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """What every expert is multiplied with, and the base with what that is short of 1."""
        weights = whole_weights(gram)
        norms = np.sqrt(np.diag(weights))
        there = norms > 0
        if not there.any():
            return np.zeros(len(gram))
        cosines = weights[np.ix_(there, there)] / np.outer(norms[there], norms[there])
        mean = self._mean(cosines)
        of_experts = np.zeros(len(norms))
        of_experts[there] = mean / norms[there] * norms.mean()
        return np.concatenate([[of_experts.sum() - 1], of_experts])

    def _mean(self, cosines: np.ndarray) -> np.ndarray:
        """Coefficients of u on the unit vectors."""
        mean = np.full(len(cosines), 1 / len(cosines))
        length = np.sqrt(mean @ cosines @ mean)
        if length <= 1e-8:  # the directions cancel: any is as good as another
            return np.eye(len(cosines))[0]
        mean /= length
        for _ in range(self.steps):
            cosine = np.clip(cosines @ mean, -1.0, 1.0)
            ratio = 1 / np.sinc(np.arccos(cosine) / np.pi)  # a / sin(a)
            ratio = np.where(cosine > -1, ratio, 1.0)
            tangent = (ratio - (ratio @ cosine) * mean) / len(cosines)
            length = np.sqrt(max(0.0, tangent @ cosines @ tangent))
            if length <= self.tolerance:
                break
            mean = np.cos(length) * mean + np.sin(length) / length * tangent
            mean /= np.sqrt(mean @ cosines @ mean)
        return mean
