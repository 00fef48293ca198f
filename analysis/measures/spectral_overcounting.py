"""Directions that the merge counts several times, or reverses."""

import numpy as np

from analysis.arithmetic import ratio
from analysis.measure import Measure
from analysis.spectral import Rotated, matrix_multipliers, rotated, summed
from analysis.view import Scope, View


def directions(one: Rotated, multipliers: np.ndarray) -> np.ndarray:
    """`s_r^k = <a_r^M, a_r^k> / ||a_r^k||^2`, `a_r^k = u_r^T tau_k`, (r, K).

    `a_r^M = sum_k l_k a_r^k`. NaN where an expert does not move along a direction.
    """
    products = one.grams @ multipliers
    own = np.einsum("rkk->rk", one.grams)
    return ratio(products, np.where(own > 1e-12 * own.max(initial=0.0), own, 0.0))


def miscounted(view: View, scope: Scope) -> np.ndarray:
    """`sum_r (s_r^k - 1)^2 ||a_r^k||^2 / sum_r ||a_r^k||^2`, over matrices, (parts, K)."""
    wrong, whole = [], []
    for one, multipliers in zip(rotated(view), matrix_multipliers(view), strict=True):
        own = np.einsum("rkk->rk", one.grams)
        scales = np.nan_to_num(directions(one, multipliers), nan=1.0)
        wrong.append(((scales - 1.0) ** 2 * own).sum(0))
        whole.append(own.sum(0))
    return ratio(summed(view, scope, np.stack(wrong)), summed(view, scope, np.stack(whole)))


MISCOUNTED = Measure(
    key="spectral_overcounting",
    title="Energy counted wrongly along the merge's directions",
    formula=r"\frac{\sum_r (s_r^k - 1)^2 \|a_r^k\|^2}{\sum_r \|a_r^k\|^2}, \quad"
    r" s_r^k = \frac{\langle a_r^M, a_r^k \rangle}{\|a_r^k\|^2}, \; a_r^k = u_r^\top \Delta_k, \;"
    r" a_r^M = \textstyle\sum_k \lambda_k a_r^k",
    reading="0: along every left singular vector u_r of the summed task vectors the merge does what"
    " the expert does. s > 1 is counted several times, s < 1 attenuated, s < 0 reversed.",
    unit="1",
    per="expert",
    better="lower",
    needs="spectra",
    baseline=None,
    source="SVC, arXiv 2602.05536",
    of=miscounted,
    of_merge=True,
)

MEASURES = (MISCOUNTED,)
