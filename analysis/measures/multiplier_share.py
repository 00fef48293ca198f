"""What AWD does to a merge, in one number per expert: its share of the coefficient."""

import numpy as np

from analysis.arithmetic import diagonal, ratio
from analysis.measure import Measure
from analysis.view import Scope, View


def span_coefficients(view: View, scope: Scope) -> np.ndarray:
    """`c_k = sum_g c_gk ||tau_gk||^2 / sum_g ||tau_gk||^2` over AWD's groups g, (parts, K).

    The group's own c_k where a part is one group or lies in one; NaN where the expert did not
    move.
    """
    return ratio(view.redundant_energies(scope), diagonal(view.moments(scope).grams))


def share(view: View, scope: Scope) -> np.ndarray:
    """`w_k / lambda = 1 - K c_k` for equal coefficients, (parts, K)."""
    return 1.0 - view.n_experts * span_coefficients(view, scope)


def effective_multiplier(view: View, scope: Scope) -> np.ndarray:
    """`w_k = l_k - (sum_i l_i) c_k` with `tau_M = sum_k w_k tau_k`, (parts, K)."""
    energies = diagonal(view.moments(scope).grams)
    whole = ratio(diagonal(view.moments(scope, 1).grams), energies)
    redundant = ratio(view.redundant_energies(scope, 1), energies)
    return view.multipliers * whole - view.multipliers.sum() * redundant


_MEAN = r"c_k = \frac{\sum_g c_{gk} \|\tau_{gk}\|^2}{\sum_g \|\tau_{gk}\|^2}"

SHARE = Measure(
    key="multiplier_share",
    title="Share of the coefficient",
    formula=r"\frac{w_k}{\lambda} = 1 - K c_k, \quad \delta = \sum_k c_k \tau_k, \quad " + _MEAN,
    reading="1: AWD leaves the expert alone. Below 1 its task vector enters the merge with less"
    " than lambda. Over several groups g of AWD: mean weighted by energy.",
    unit="1",
    per="expert",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=share,
    of_merge=True,
)

EFFECTIVE_MULTIPLIER = Measure(
    key="effective_multiplier",
    title="Effective multiplier",
    formula=r"w_k = \lambda_k - \left(\sum_i \lambda_i\right) c_k, \quad"
    r" \tau_M = \sum_k w_k \tau_k, \quad " + _MEAN,
    reading="The weight of the expert in the equal task arithmetic without AWD. Over several"
    " groups g of AWD: mean weighted by energy.",
    unit="1",
    per="expert",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=effective_multiplier,
    of_merge=True,
)

MEASURES = (SHARE, EFFECTIVE_MULTIPLIER)
