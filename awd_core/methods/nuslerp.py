"""Spherical interpolation of two task vectors."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from awd_core.method import GramMethod, shares


@dataclass(frozen=True)
class NuSlerp(GramMethod):
    """In every tensor from tau_1 to tau_2 along the great circle, w_2 / (w_1 + w_2) of the way.

    mergekit's NuSLERP with a base model. Task vectors that point the same way, or the opposite way,
    or of which one is 0, are interpolated linearly.
    """

    key: ClassVar[str] = "nuslerp"
    title: ClassVar[str] = "NuSLERP"
    source: ClassVar[str] = "mergekit, github.com/arcee-ai/mergekit"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta = \theta_0 + \frac{\sin((1-t)\alpha)}{\sin\alpha}\, \tau_1"
        r" + \frac{\sin(t\alpha)}{\sin\alpha}\, \tau_2,\quad"
        r" t = \frac{w_2}{w_1 + w_2} \quad\text{per tensor}"
    )
    coefficients_are: ClassVar[Literal["scales", "weights"]] = "weights"
    default_coefficient: ClassVar[float] = 1.0
    least_experts: ClassVar[int] = 2
    most_experts: ClassVar[int | None] = 2

    def multipliers(self, gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """The two sines; the two shares where there is no angle."""
        linear = shares(coefficients)
        length = np.sqrt(gram[1, 1] * gram[2, 2])
        angle = np.arccos(np.clip(gram[1, 2] / length, -1.0, 1.0)) if length > 0 else 0.0
        if np.sin(angle) < 1e-8:
            return np.concatenate([[0.0], linear])
        return np.concatenate([[0.0], np.sin(linear * angle) / np.sin(angle)])
