"""Model Stock: how far from the base the experts' common centre is, from their angle."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from awd_core.knobs import Preset, knob
from awd_core.method import GramMethod


@dataclass(frozen=True)
class ModelStock(GramMethod):
    """In every tensor `theta = t mean(theta_k) + (1 - t) theta_0`, t from the angle of the experts.

    t = K cos / (1 + (K - 1) cos), with cos the mean cosine of two task vectors. The derivation
    takes them as equally long and equally far apart. cos is kept in [0, 1]: below 0, t is negative
    and has a pole at -1/(K - 1). A task vector of 0 has cosine 0 with every other. One expert alone
    is the result.

    With `unequal-norms` (ours) every expert may have a distance of its own from the centre d:
    tau_k = d + e_k, with the e_k orthogonal to one another and to d. Then D = ||d||^2 is the mean
    inner product of two task vectors, s_k^2 = ||tau_k||^2 - D, and the best estimate of d has
    w_k = (D / s_k^2) / (1 + D sum_j 1 / s_j^2): t / K where all are equal.
    """

    key: ClassVar[str] = "model_stock"
    title: ClassVar[str] = "Model Stock"
    source: ClassVar[str] = "Jang et al., Model Stock, arXiv 2403.19522"
    year: ClassVar[int] = 2024
    formula: ClassVar[str] = (
        r"\theta = t\, \bar\theta + (1 - t)\, \theta_0,\quad"
        r" t = \frac{K \cos\alpha}{1 + (K - 1) \cos\alpha} \quad\text{per tensor}"
    )
    presets: ClassVar[dict[str, Preset]] = {
        "mergekit": Preset({"centre": "mean-cosine"}, note="Mean of the pairwise cosines."),
        "fusionbench": Preset({"centre": "mean-angle"}, note="Mean of the pairwise angles."),
    }
    takes_coefficients: ClassVar[bool] = False

    centre: str = knob(
        "mean-cosine",
        choices=("mean-cosine", "mean-angle", "unequal-norms"),
        help="How many pairs become one angle; or our estimate for task vectors of unequal length.",
    )

    def multipliers(self, gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """t / K for every expert, or w_k."""
        inner = gram[1:, 1:]
        if len(inner) == 1:
            return np.array([0.0, 1.0])
        of_experts = _unequal(inner) if self.centre == "unequal-norms" else self._equal(inner)
        return np.concatenate([[0.0], of_experts])

    def _equal(self, inner: np.ndarray) -> np.ndarray:
        n_experts = len(inner)
        norms = np.sqrt(np.diag(inner))
        lengths = np.outer(norms, norms)
        pairs = np.tril_indices(n_experts, -1)
        cosines = np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0)[pairs]
        cosines = np.clip(cosines, -1.0, 1.0)
        if self.centre == "mean-angle":
            cosine = np.cos(np.arccos(cosines).mean())
        else:
            cosine = cosines.mean()
        cosine = np.clip(cosine, 0.0, 1.0)
        return np.full(n_experts, cosine / (1 + (n_experts - 1) * cosine))


def _unequal(inner: np.ndarray) -> np.ndarray:
    n_experts, squares = len(inner), np.diag(inner)
    common = inner[np.tril_indices(n_experts, -1)].mean()
    if common <= 0:
        return np.zeros(n_experts)
    # An expert closer to the centre than rounding can tell counts as that close.
    distances = np.maximum(squares - common, 1e-12 * squares.max())
    return (common / distances) / (1 + common * (1 / distances).sum())
