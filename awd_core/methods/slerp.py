"""Spherical interpolation of two models."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.knobs import knob
from awd_core.method import GramMethod, whole_weights

# Above this cosine the arc is as good as the chord, and the chord is taken.
LINEAR_COSINE = 0.9995


@dataclass(frozen=True)
class Slerp(GramMethod):
    """In every tensor from theta_1 to theta_2 along the great circle, a share t of the way.

    `theta = sin((1 - t) a) / sin(a) theta_1 + sin(t a) / sin(a) theta_2` with a the angle of the
    two weights. Where |cos a| > 0.9995, which is nearly everywhere with experts of one base, it is
    `(1 - t) theta_1 + t theta_2`.
    """

    key: ClassVar[str] = "slerp"
    title: ClassVar[str] = "SLERP"
    source: ClassVar[str] = "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985"
    year: ClassVar[int] = 1985
    formula: ClassVar[str] = (
        r"\theta = \frac{\sin((1-t)\alpha)}{\sin\alpha}\, \theta_1"
        r" + \frac{\sin(t\alpha)}{\sin\alpha}\, \theta_2 \quad\text{per tensor}"
    )
    takes_coefficients: ClassVar[bool] = False
    least_experts: ClassVar[int] = 2
    most_experts: ClassVar[int | None] = 2
    permutation_equivariant: ClassVar[bool] = False
    scale_equivariant: ClassVar[bool] = False
    takes_task_vectors: ClassVar[bool] = False

    t: float = knob(0.5, low=0.0, high=1.0, help="How far to go from the first to the second.")

    def multipliers(self, gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """The two sines, and the base with what they are short of 1."""
        weights = whole_weights(gram)
        length = np.sqrt(weights[0, 0] * weights[1, 1])
        cosine = np.clip(weights[0, 1] / length, -1.0, 1.0) if length > 0 else 1.0
        if abs(cosine) > LINEAR_COSINE:
            return np.array([0.0, 1 - self.t, self.t])
        angle = np.arccos(cosine)
        first, second = np.sin([(1 - self.t) * angle, self.t * angle]) / np.sin(angle)
        return np.array([first + second - 1, first, second])
