"""How often two experts push the same weight in opposite directions."""

import numpy as np

from analysis.arithmetic import ratio
from analysis.measure import Measure
from analysis.view import Scope, View
from awd_core.elements import DENSITIES


def sign_conflict(view: View, scope: Scope, density: float) -> np.ndarray:
    """`(1 - A_ij / B_ij) / 2` from the sign Grams, (parts, K, K); NaN where no entry overlaps.

    Raises:
        ValueError: The study was not collected at this density; see `awd_core.elements.DENSITIES`.
    """
    counts, level = view.elements(scope), DENSITIES.index(density)
    agreement = ratio(counts.agreement[:, level], counts.overlap[:, level])
    return (1.0 - agreement) / 2.0


def _measure(key: str, title: str, density: float, which: str) -> Measure:
    return Measure(
        key=key,
        title=title,
        formula=r"\frac{1}{2} \left(1 - \frac{\langle s_i, s_j \rangle}"
        r"{\langle |s_i|, |s_j| \rangle}\right), \quad s_k = \mathrm{sign}(\tau_k)" + which,
        reading="Share of the weights moved by both experts that they move in opposite directions."
        " 0.5 is chance.",
        unit="1",
        per="pair",
        better="lower",
        needs="elements",
        baseline=0.5,
        source="Yadav et al., TIES-Merging, arXiv 2306.01708, section 3, for pairs",
        of=lambda view, scope: sign_conflict(view, scope, density),
    )


ALL_ENTRIES = _measure("sign_conflict", "Sign conflict", 1.0, "")
LARGEST_ENTRIES = _measure(
    "sign_conflict_of_largest",
    "Sign conflict of the largest 20% of entries",
    0.2,
    r" \text{ of the largest } 20\,\% \text{ of each tensor, else } 0",
)

MEASURES = (ALL_ENTRIES, LARGEST_ENTRIES)
