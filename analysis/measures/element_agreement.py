"""How many experts move the same weight, and whether they agree on its direction."""

import numpy as np

from analysis.arithmetic import ratio
from analysis.measure import Measure
from analysis.view import Scope, View
from awd_core.elements import DENSITIES

# Bins of the histogram of agreement, from 0 (as many up as down) to 1 (all the same way).
N_BINS = 10


def conflict(view: View, scope: Scope, density: float) -> np.ndarray:
    """Of the elements that at least two experts move, the share with both signs; (parts,)."""
    votes = _votes(view, scope, density)
    up, down = np.indices(votes.shape[1:])
    several = np.where(up + down >= 2, votes, 0)
    opposed = np.where((up > 0) & (down > 0), votes, 0)
    return ratio(opposed.sum((1, 2)), several.sum((1, 2)))


def agreement(view: View, scope: Scope, density: float) -> np.ndarray:
    """Mean of |p - m| / (p + m) over elements that at least two experts move, (parts,).

    p experts move the element up, m move it down.
    """
    votes = _votes(view, scope, density)
    several, values = _agreements(view.n_experts)
    counts = votes[:, several]
    return ratio((counts * values).sum(1), counts.sum(1))


def histogram(view: View, scope: Scope, density: float) -> np.ndarray:
    """Share of those elements by their |p - m| / (p + m), (parts, N_BINS), each part sums to 1.

    The last bin holds full agreement too. NaN where no two experts move an element.
    """
    votes = _votes(view, scope, density)
    several, values = _agreements(view.n_experts)
    bins = np.minimum((values * N_BINS + 1e-9).astype(np.int64), N_BINS - 1)
    counts = np.zeros((len(votes), N_BINS))
    np.add.at(counts.T, bins, votes[:, several].T)
    return ratio(counts, counts.sum(1, keepdims=True))


def _votes(view: View, scope: Scope, density: float) -> np.ndarray:
    return view.elements(scope).votes[:, DENSITIES.index(density)]


def _agreements(n_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Which [p, m] have at least two votes, and their agreement."""
    up, down = np.indices((n_experts + 1, n_experts + 1))
    several = up + down >= 2
    return several, (np.abs(up - down) / np.maximum(up + down, 1))[several]


_SIGNS = r"p = \#\{k : \tau_k > 0\}, \; m = \#\{k : \tau_k < 0\}"
_LARGEST = r" \text{ among the largest } 20\,\% \text{ of each } \tau_k"

CONFLICT = Measure(
    key="element_conflict",
    title="Elements in conflict",
    formula=r"\frac{\#\{p > 0, m > 0\}}{\#\{p + m \ge 2\}}, \quad " + _SIGNS + _LARGEST,
    reading="Share of the weights moved by at least two experts that they do not all move the same"
    " way. Two independent experts: 0.5; it grows with their number.",
    unit="1",
    per="part",
    better="lower",
    needs="elements",
    baseline=None,
    source="Yadav et al., TIES-Merging, arXiv 2306.01708, section 3",
    of=lambda view, scope: conflict(view, scope, 0.2),
)

AGREEMENT = Measure(
    key="element_agreement",
    title="Agreement on direction",
    formula=r"\mathrm{mean}_{p + m \ge 2} \, \frac{|p - m|}{p + m}, \quad " + _SIGNS + _LARGEST,
    reading="1: all experts that move a weight move it the same way. 0: as many up as down. Weights"
    " moved by fewer than two are left out.",
    unit="1",
    per="part",
    better="higher",
    needs="elements",
    baseline=None,
    source="Yadav et al., TIES-Merging, arXiv 2306.01708",
    of=lambda view, scope: agreement(view, scope, 0.2),
)

MEASURES = (CONFLICT, AGREEMENT)
