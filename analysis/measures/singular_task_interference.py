"""Singular task interference: do the experts use one another's leading directions?"""

import numpy as np

from analysis.arithmetic import ratio
from analysis.measure import Measure
from analysis.spectral import spectra, summed
from analysis.view import Scope, View


def interference(view: View, scope: Scope) -> np.ndarray:
    """`||E||_1 / sum of kept s`, both summed over matrices, (parts,)."""
    blocks = spectra(view).blocks.sum((1, 2))
    return ratio(summed(view, scope, blocks), _strengths(view, scope))


def of_pairs(view: View, scope: Scope) -> np.ndarray:
    """Blocks (i, j) and (j, i) together, over the same sum, (parts, K, K).

    On the diagonal block (i, i): what the others do along the expert's own directions. Pairs i < j
    and the diagonal sum to `interference`.
    """
    blocks = spectra(view).blocks
    both = blocks + blocks.transpose(0, 2, 1)
    own = np.eye(view.n_experts, dtype=bool)
    both[:, own] /= 2
    return ratio(summed(view, scope, both), _strengths(view, scope)[:, None, None])


def of_culprits(view: View, scope: Scope) -> np.ndarray:
    """Sums of absolute entries of `U_i^T Delta_m V_j` over i, j other than m; (parts, K)."""
    caused = spectra(view).contributions.sum((2, 3))
    return ratio(summed(view, scope, caused), _strengths(view, scope)[:, None])


def _strengths(view: View, scope: Scope) -> np.ndarray:
    return summed(view, scope, spectra(view).strengths.sum(1))


_E = (
    r"E = (U^\top U - I) \, S \, (V^\top V - I), \quad"
    r" E_{ij} = U_i^\top \textstyle\sum_{m \ne i, j} \Delta_m V_j"
)
_SOURCE = "Gargiulo et al., TSV, arXiv 2412.00081; sum of absolute entries as the 1-norm"

WHOLE = Measure(
    key="singular_task_interference",
    title="Singular task interference",
    formula=r"\frac{\|E\|_1}{\sum s}, \quad " + _E,
    reading="0: the experts' leading directions are orthogonal, on one side at least. Two experts"
    " that are the same: 1. The floor(r/K) leading triplets of every expert are compared.",
    unit="1",
    per="part",
    better="lower",
    needs="spectra",
    baseline=None,
    source=_SOURCE,
    of=interference,
)

PAIRS = Measure(
    key="singular_task_interference_of_pairs",
    title="Singular task interference of pairs",
    formula=r"\frac{\|E_{ij}\|_1 + \|E_{ji}\|_1}{\sum s} \; (i \ne j), \quad"
    r" \frac{\|E_{ii}\|_1}{\sum s}, \quad " + _E,
    reading="Which directions collide: those of i on the left with those of j on the right. Pairs"
    " and diagonal sum to the whole.",
    unit="1",
    per="pair",
    better="lower",
    needs="spectra",
    baseline=None,
    source=_SOURCE,
    of=of_pairs,
)

CULPRITS = Measure(
    key="singular_task_interference_by_culprit",
    title="Singular task interference caused",
    formula=r"\frac{\sum_{i, j \ne m} \|U_i^\top \Delta_m V_j\|_1}{\sum s}",
    reading="How much expert m acts along the leading directions of the others. The experts' sum is"
    " at least the whole.",
    unit="1",
    per="expert",
    better="lower",
    needs="spectra",
    baseline=None,
    source="ours, from the block identity of " + _SOURCE,
    of=of_culprits,
)

MEASURES = (WHOLE, PAIRS, CULPRITS)
