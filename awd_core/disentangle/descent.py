"""From what a user chose to what the solver does in every group."""

from typing import cast

import numpy as np

from awd_core.disentangle.gram_solver import Descent
from awd_core.disentangle.groups import Groups
from awd_core.disentangle.objective import Penalty
from awd_core.disentangle.settings import (
    PAPER_ALPHA,
    PAPER_LR,
    RELATIVE_ALPHA,
    RELATIVE_LR,
    Settings,
)
from awd_core.disentangle.solution import critical_in_units_of_alpha
from awd_core.errors import RecipeError


def as_descent(groups: Groups, settings: Settings) -> Descent:
    """The descent of every group, in the paper's units.

    Raises:
        RecipeError: Settings that leave the span of the task vectors.
    """
    if settings.leaves_span:
        raise RecipeError(
            "Penalty l1 and optimizer adam leave the span of the task vectors",
            where="disentangle",
            expected="plain descent with penalty l2, l2_squared or none, on a study",
            remedy="Merge with these settings, or call solve_dense on the weights.",
        )
    # The loss of the authors' later code is 1/m sum_rows L_O + alpha sum_rows ||delta||: for one
    # row that is 1/m (L_O + m alpha ||delta||), descended with lr and weight decay wd.
    rows = groups.n_siblings if settings.row_average else np.ones(len(groups.labels))
    return Descent(
        alpha=_alpha(groups, settings) * rows,
        lr=_lr(groups, settings) / rows,
        steps=settings.steps,
        penalty=cast(Penalty, settings.penalty),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay * rows,
        until=settings.until,
        radius=np.inf if settings.radius is None else settings.radius,
    )


def _alpha(groups: Groups, settings: Settings) -> np.ndarray:
    if settings.radius is not None:
        return np.zeros(len(groups.labels))
    if settings.uses_paper_units[0]:
        alpha = PAPER_ALPHA if settings.alpha is None else settings.alpha
        return np.full(len(groups.labels), alpha)
    fraction = RELATIVE_ALPHA if settings.alpha_relative is None else settings.alpha_relative
    return fraction * critical_in_units_of_alpha(groups, settings)


def _lr(groups: Groups, settings: Settings) -> np.ndarray:
    if settings.uses_paper_units[1]:
        return np.full(len(groups.labels), settings.lr or PAPER_LR)
    return (settings.lr_relative or RELATIVE_LR) * groups.scale**2
