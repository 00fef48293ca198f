"""How much of each expert is in the merge."""

import numpy as np

from analysis.arithmetic import diagonal, ratio, root
from analysis.measure import Measure
from analysis.view import Scope, View


def retained(view: View, scope: Scope) -> np.ndarray:
    """`<tau_M, tau_k> / ||tau_k||^2 = ((G l)_k - L p_k) / G_kk`, L = sum l; (parts, K)."""
    energies = diagonal(view.moments(scope).grams)
    return ratio(view.moments(scope, 1).merged_products(view.multipliers), energies)


def alignment(view: View, scope: Scope) -> np.ndarray:
    """`cos(tau_M, tau_k)`, (parts, K); NaN where either is zero."""
    merged = root(view.moments(scope, 2).merged_square(view.multipliers))[:, None]
    lengths = root(diagonal(view.moments(scope).grams))
    return ratio(view.moments(scope, 1).merged_products(view.multipliers), merged * lengths)


RETAINED = Measure(
    key="retained_signal",
    title="Retained signal",
    formula=r"\frac{\langle \tau_M, \tau_k \rangle}{\|\tau_k\|^2}",
    reading="1: the merge goes as far along the expert's task vector as the expert itself."
    " Without interference it is the expert's coefficient.",
    unit="1",
    per="expert",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=retained,
    of_merge=True,
)

ALIGNMENT = Measure(
    key="alignment",
    title="Alignment with the merge",
    formula=r"\cos(\tau_M, \tau_k)",
    reading="1: the merge goes exactly the expert's way. K orthogonal experts of one norm:"
    " 1 / sqrt(K).",
    unit="1",
    per="expert",
    better="higher",
    needs="gram",
    baseline=0.0,
    source="ours",
    of=alignment,
    of_merge=True,
)

MEASURES = (RETAINED, ALIGNMENT)
