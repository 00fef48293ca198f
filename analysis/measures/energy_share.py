"""Who makes up the merge, and how unequal the experts are."""

import numpy as np

from analysis.arithmetic import diagonal, ratio, root
from analysis.measure import Measure
from analysis.view import Scope, View, When


def share(view: View, scope: Scope) -> np.ndarray:
    """`l_k <v_k, tau_M> / ||tau_M||^2`, (parts, K); sums to 1 over experts."""
    moments, multipliers = view.moments(scope, 2), view.multipliers
    with_merged = moments.merged_products(multipliers)
    redundant = moments.products @ multipliers - multipliers.sum() * moments.squares
    energies = multipliers * (with_merged - redundant[:, None])
    # Their sum is ||tau_M||^2; taken from them, so that shares sum to 1 to the last bit.
    return ratio(energies, energies.sum(1, keepdims=True))


def imbalance(view: View, scope: Scope) -> np.ndarray:
    """`max_k ||tau_k|| / min_k ||tau_k||`, (parts,); NaN where an expert did not move."""
    lengths = root(diagonal(view.moments(scope).grams))
    return ratio(lengths.max(1), lengths.min(1))


def directions(view: View, scope: Scope, when: When) -> np.ndarray:
    """`(tr G)^2 / ||G||_F^2`, (parts,); NaN where no expert moved."""
    grams = view.grams(scope, when)
    return ratio(diagonal(grams).sum(1) ** 2, (grams**2).sum((1, 2)))


ENERGY = Measure(
    key="energy_share",
    title="Share of the merge's energy",
    formula=r"\frac{\lambda_k \langle v_k, \tau_M \rangle}{\|\tau_M\|^2}",
    reading="What the expert contributes to the squared norm of the merge; sums to 1 over experts."
    " Negative: the merge moves against it.",
    unit="1",
    per="expert",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=share,
    of_merge=True,
)

IMBALANCE = Measure(
    key="norm_imbalance",
    title="Norm imbalance",
    formula=r"\frac{\max_k \|\tau_k\|}{\min_k \|\tau_k\|}",
    reading="1: all experts moved equally far. Several merge methods lose accuracy where it is"
    " large; equalising norms sets it to 1.",
    unit="1",
    per="part",
    better="lower",
    needs="gram",
    baseline=None,
    source="Yoshida et al., DisTaC, arXiv 2508.01148",
    of=imbalance,
)


def _directions(when: When, vector: str, words: str) -> Measure:
    return Measure(
        key=f"effective_directions_{when}",
        title=f"Effective number of directions of {words}",
        formula=r"\frac{(\mathrm{tr}\, G)^2}{\|G\|_F^2}, \quad G_{ij} = \langle"
        + rf" {vector}_i, {vector}_j \rangle",
        reading="K: orthogonal vectors of one length. 1: all the experts point the same way, or one"
        " outweighs the others.",
        unit="1",
        per="part",
        better="higher",
        needs="gram",
        baseline=None,
        source="Participation ratio of the eigenvalues of G",
        of=lambda view, scope: directions(view, scope, when),
    )


MEASURES = (
    ENERGY,
    IMBALANCE,
    _directions("before", r"\tau", "task vectors"),
    _directions("after", "v", "disentangled vectors"),
)
