"""Weights that an expert does not move, and moves that bfloat16 would lose."""

import numpy as np

from analysis.arithmetic import ratio
from analysis.measure import Measure
from analysis.view import Scope, View
from awd_core.elements import UPDATE_SCALES


def zero_fraction(view: View, scope: Scope) -> np.ndarray:
    """`#{tau_k = 0} / n`, (parts, K)."""
    moved = view.elements(scope).moved[:, :-1]
    return 1.0 - ratio(moved, view.n_elements(scope)[:, None])


def lost_fraction(view: View, scope: Scope, scale: float) -> np.ndarray:
    """Lost updates of every expert at this scale, over those it makes, (parts, K).

    Raises:
        ValueError: The study was not collected at this scale.
    """
    return _lost(view, scope, scale)[:, :-1]


def lost_fraction_of_sum(view: View, scope: Scope, scale: float) -> np.ndarray:
    """The same for `scale * sum_k tau_k`, (parts,)."""
    return _lost(view, scope, scale)[:, -1]


def _lost(view: View, scope: Scope, scale: float) -> np.ndarray:
    counts = view.elements(scope)
    return ratio(counts.lost[:, UPDATE_SCALES.index(scale)], counts.moved)


_LOST = (
    r"\frac{\#\{x \ne 0, \mathrm{bf16}(\theta_0 + x) = \mathrm{bf16}(\theta_0)\}}{\#\{x \ne 0\}}"
)

ZERO = Measure(
    key="exact_zero_fraction",
    title="Weights left as they were",
    formula=r"\frac{\#\{\tau_k = 0\}}{n}",
    reading="1: the expert left this part alone. Between 0 and 1 for a fully fine-tuned model:"
    " its checkpoint was rounded and small moves were lost.",
    unit="1",
    per="expert",
    better=None,
    needs="elements",
    baseline=None,
    source="ours",
    of=zero_fraction,
)

LOST = Measure(
    key="lost_update_fraction",
    title="Moves lost if saved as bfloat16",
    formula=_LOST + r", \quad x = \tau_k",
    reading="Share of the expert's moves that vanish when the expert is saved as bfloat16. For a"
    " base stored as bfloat16 it is 0.",
    unit="1",
    per="expert",
    better="lower",
    needs="elements",
    baseline=None,
    source="ours",
    of=lambda view, scope: lost_fraction(view, scope, 1.0),
)

LOST_IN_MERGE = Measure(
    key="lost_update_fraction_of_merge",
    title="Moves of task arithmetic lost in bfloat16",
    formula=_LOST + r", \quad x = 0.3 \textstyle\sum_k \tau_k",
    reading="Share of the moves of task arithmetic at lambda = 0.3 that vanish when the merge is"
    " saved as bfloat16.",
    unit="1",
    per="part",
    better="lower",
    needs="elements",
    baseline=None,
    source="ours",
    of=lambda view, scope: lost_fraction_of_sum(view, scope, 0.3),
)

MEASURES = (ZERO, LOST, LOST_IN_MERGE)
