"""How far the merged model moves."""

import numpy as np

from analysis.arithmetic import diagonal, ratio, root
from analysis.measure import Measure
from analysis.view import Scope, View


def norm(view: View, scope: Scope) -> np.ndarray:
    """`||tau_M|| = sqrt(l^T G l - 2 L l^T p + L^2 q)`, L = sum l; (parts,)."""
    return root(view.moments(scope, 2).merged_square(view.multipliers))


def without_awd(view: View, scope: Scope) -> np.ndarray:
    """`||sum_k l_k tau_k|| = sqrt(l^T G l)`, (parts,)."""
    grams = view.moments(scope, 2).grams
    return root((grams @ view.multipliers) @ view.multipliers)


def relative_to_experts(view: View, scope: Scope) -> np.ndarray:
    """`||tau_M|| / mean_k ||tau_k||`, (parts,); NaN where no expert moved."""
    lengths = root(diagonal(view.moments(scope).grams))
    return ratio(norm(view, scope), lengths.mean(-1))


def relative_to_task_arithmetic(view: View, scope: Scope) -> np.ndarray:
    """`||tau_M|| / ||sum_k l_k tau_k||`, (parts,); NaN where the latter is zero."""
    return ratio(norm(view, scope), without_awd(view, scope))


NORM = Measure(
    key="merged_norm",
    title="Merged norm",
    formula=r"\|\tau_M\|, \quad \tau_M = \sum_k \lambda_k (\tau_k - \delta)",
    reading="How far the merge moves from the base.",
    unit="weight units",
    per="part",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=norm,
    of_merge=True,
)

RELATIVE_TO_EXPERTS = Measure(
    key="merged_norm_relative_to_experts",
    title="Merged norm relative to the experts",
    formula=r"\frac{\|\tau_M\|}{\frac{1}{K} \sum_k \|\tau_k\|}",
    reading="1: the merge moves as far from the base as an expert does.",
    unit="1",
    per="part",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=relative_to_experts,
    of_merge=True,
)

RELATIVE_TO_TASK_ARITHMETIC = Measure(
    key="merged_norm_relative_to_task_arithmetic",
    title="Merged norm relative to the same merge without AWD",
    formula=r"\frac{\|\tau_M\|}{\|\sum_k \lambda_k \tau_k\|}",
    reading="Below 1: at the same coefficients AWD shrinks the merge, as a smaller lambda would.",
    unit="1",
    per="part",
    better=None,
    needs="gram",
    baseline=None,
    source="ours",
    of=relative_to_task_arithmetic,
    of_merge=True,
)

MEASURES = (NORM, RELATIVE_TO_EXPERTS, RELATIVE_TO_TASK_ARITHMETIC)
