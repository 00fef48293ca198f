"""How far each expert moved."""

import numpy as np

from analysis.arithmetic import diagonal, ratio, root
from analysis.measure import Measure
from analysis.view import Scope, View


def norm(view: View, scope: Scope) -> np.ndarray:
    """`||tau_k||`, (parts, K)."""
    return root(diagonal(view.moments(scope).grams))


def relative_norm(view: View, scope: Scope) -> np.ndarray:
    """`||tau_k|| / ||theta_0||`, (parts, K); NaN where the base is zero."""
    return ratio(norm(view, scope), root(view.base_squares(scope))[:, None])


def rms(view: View, scope: Scope) -> np.ndarray:
    """`||tau_k|| / sqrt(n)`, n the number of elements, (parts, K)."""
    return ratio(norm(view, scope), np.sqrt(view.n_elements(scope))[:, None])


NORM = Measure(
    key="task_vector_norm",
    title="Task-vector norm",
    formula=r"\|\tau_k\|",
    reading="How far the expert moved from the base.",
    unit="weight units",
    per="expert",
    better=None,
    needs="gram",
    baseline=None,
    source="Ilharco et al., arXiv 2212.04089",
    of=norm,
)

RELATIVE_NORM = Measure(
    key="relative_task_vector_norm",
    title="Task-vector norm relative to the base",
    formula=r"\frac{\|\tau_k\|}{\|\theta_0\|}",
    reading="0.01: the expert moved by one percent of the base's norm.",
    unit="1",
    per="expert",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=relative_norm,
)

RMS = Measure(
    key="task_vector_rms",
    title="Root mean square of the task vector",
    formula=r"\frac{\|\tau_k\|}{\sqrt{n}}",
    reading="Change of a typical weight; comparable between parts of different size.",
    unit="weight units",
    per="expert",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=rms,
)

MEASURES = (NORM, RELATIVE_NORM, RMS)
