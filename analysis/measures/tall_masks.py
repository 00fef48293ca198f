"""TALL masks: which weights of the merged task vector each expert needs."""

from collections.abc import Callable

import numpy as np

from analysis.arithmetic import diagonal, ratio
from analysis.measure import Measure, Per
from analysis.view import Scope, View
from awd_core.elements import MASK_SHARES

DEFAULT_SHARE = 0.4


def profile(view: View, scope: Scope, share: float = DEFAULT_SHARE) -> np.ndarray:
    """Share of the moved weights that 0, 1, ..., K experts need, (parts, K + 1), sums to 1.

    Raises:
        ValueError: The study was not collected at this lambda; see `elements.MASK_SHARES`.
    """
    claims = view.elements(scope).claims[:, MASK_SHARES.index(share)]
    return ratio(claims, claims.sum(1, keepdims=True))


def density(view: View, scope: Scope, share: float = DEFAULT_SHARE) -> np.ndarray:
    """Share of the weights of the part that the expert's mask keeps, (parts, K)."""
    kept = diagonal(view.elements(scope).shared_claims[:, MASK_SHARES.index(share)])
    return ratio(kept, view.n_elements(scope)[:, None])


def overlap(view: View, scope: Scope, share: float = DEFAULT_SHARE) -> np.ndarray:
    """Intersection over union of every two masks, (parts, K, K); NaN where both are empty."""
    shared = view.elements(scope).shared_claims[:, MASK_SHARES.index(share)]
    kept = diagonal(shared)
    return ratio(shared, kept[:, :, None] + kept[:, None, :] - shared)


_MASK = (
    r"m_k = \left[\, |\tau_k| > 0.4 \, |\textstyle\sum_j \tau_j - \tau_k| \,\right],"
    r" \quad c = \textstyle\sum_k m_k"
)


def _measure(
    key: str, title: str, formula: str, reading: str, of: Callable[[View, Scope], np.ndarray],
    per: Per = "part", better: str | None = None,
) -> Measure:  # fmt: skip
    return Measure(
        key=key,
        title=title,
        formula=formula + r", \quad " + _MASK,
        reading=reading,
        unit="1",
        per=per,
        better="lower" if better == "lower" else None,
        needs="elements",
        baseline=None,
        source="Wang et al., TALL-masks, arXiv 2405.07813, sections 3 and 4",
        of=of,
    )


CATASTROPHIC = _measure(
    "catastrophic_fraction",
    "Catastrophic weights",
    r"\frac{\#\{c = 0\}}{\#\{\exists k: \tau_k \ne 0\}}",
    "Share of the moved weights that no expert needs where the merge puts them: there the task"
    " vectors cancel or drown one another.",
    lambda view, scope: profile(view, scope)[:, 0],
    better="lower",
)

SELFISH = _measure(
    "selfish_fraction",
    "Selfish weights",
    r"\frac{\#\{c = 1\}}{\#\{\exists k: \tau_k \ne 0\}}",
    "Share of the moved weights that one expert alone needs.",
    lambda view, scope: profile(view, scope)[:, 1],
)

GENERAL = _measure(
    "general_fraction",
    "General weights",
    r"\frac{\#\{c \ge 2\}}{\#\{\exists k: \tau_k \ne 0\}}",
    "Share of the moved weights that several experts need; a consensus mask keeps these.",
    lambda view, scope: (
        profile(view, scope)[:, 2:].sum(1) + 0.0 * profile(view, scope)[:, 0]
    ),  # NaN where nothing is moved, also with one expert
)

DENSITY = _measure(
    "mask_density",
    "Density of the mask",
    r"\frac{\#\{m_k = 1\}}{n}",
    "Share of the weights that the expert needs where the merge puts them.",
    density,
    per="expert",
)

OVERLAP = _measure(
    "mask_overlap",
    "Overlap of masks",
    r"\frac{\#\{m_i = m_j = 1\}}{\#\{m_i = 1 \lor m_j = 1\}}",
    "1: the two experts need the same weights. 0: none in common.",
    overlap,
    per="pair",
)

MEASURES = (CATASTROPHIC, SELFISH, GENERAL, DENSITY, OVERLAP)
