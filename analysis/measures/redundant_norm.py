"""How much AWD takes away."""

import numpy as np

from analysis.arithmetic import diagonal, ratio, root
from analysis.measure import Measure
from analysis.view import Scope, View


def norm(view: View, scope: Scope) -> np.ndarray:
    """`||delta||`, (parts,)."""
    return root(view.moments(scope).squares)


def relative_norm(view: View, scope: Scope) -> np.ndarray:
    """`||delta|| / mean_k ||tau_k||`, (parts,); NaN where no expert moved."""
    lengths = root(diagonal(view.moments(scope).grams))
    return ratio(norm(view, scope), lengths.mean(-1))


NORM = Measure(
    key="redundant_norm",
    title="Redundant-vector norm",
    formula=r"\|\delta\|",
    reading="What AWD takes away from every task vector. The norm constraint keeps it small.",
    unit="weight units",
    per="part",
    better="lower",
    needs="gram",
    baseline=None,
    source="Xiong et al., arXiv 2411.18729, Eq. 10",
    of=norm,
)

RELATIVE_NORM = Measure(
    key="relative_redundant_norm",
    title="Redundant-vector norm relative to the task vectors",
    formula=r"\frac{\|\delta\|}{\frac{1}{K} \sum_k \|\tau_k\|}",
    reading="0: the task vectors are untouched. 1: delta is as long as a task vector.",
    unit="1",
    per="part",
    better="lower",
    needs="gram",
    baseline=None,
    source="ours",
    of=relative_norm,
)

MEASURES = (NORM, RELATIVE_NORM)
