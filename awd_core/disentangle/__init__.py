"""Adaptive Weight Disentanglement: one small redundant vector makes task vectors orthogonal."""

from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import ValidationError

from awd_core.disentangle.gram_solver import Descent, descend
from awd_core.disentangle.groups import Groups, groups
from awd_core.disentangle.objective import (
    cosines,
    critical_alpha,
    disentangled_grams,
    mean_absolute_cosine,
)
from awd_core.disentangle.settings import (
    GRANULARITIES,
    PAPER_ALPHA,
    PAPER_LR,
    RELATIVE_ALPHA,
    RELATIVE_LR,
    Granularity,
    Settings,
)
from awd_core.disentangle.solution import Disentangled, Moments, moments
from awd_core.study import Study
from awd_core.validation import as_recipe_error

__all__ = [
    "GRANULARITIES",
    "Disentangled",
    "Granularity",
    "Moments",
    "Settings",
    "cosines",
    "critical_alpha",
    "disentangle",
    "disentangled_grams",
    "mean_absolute_cosine",
    "no_redundancy",
    "solve",
]


def disentangle(study: Study, granularity: Granularity = "model", **settings: Any) -> Disentangled:
    """Find the redundant vector of every group by gradient descent in the Gram domain.

    delta <- delta - beta grad( 1/(K(K-1)) sum_{i != j} |cos(tau_i - delta, tau_j - delta)|
    + alpha ||delta|| ), from delta = 0 (arXiv 2411.18729, Eq. 9-11). Equal to the same descent in
    the space of the weights to rounding, without the weights.

    Args:
        study: The study.
        granularity: `model`, `block`, `tensor` or `row`.
        **settings: The other fields of `Settings`: alpha, alpha_relative, lr, lr_relative, steps,
            penalty, momentum, weight_decay.

    Returns:
        Coefficients, trace, and what follows from them.

    Raises:
        RecipeError: A setting is unknown or out of range.
        StudyError: Granularity `row` on a study without rows.

    Cost: O(groups K^2 steps); model granularity, K = 8, 300 steps: under a millisecond.
    """
    try:
        chosen = Settings(granularity=granularity, **settings)
    except ValidationError as error:
        raise as_recipe_error(error, Settings, "disentangle") from error
    return solve(study, chosen)


def solve(study: Study, settings: Settings) -> Disentangled:
    """`disentangle` for settings that are checked already."""
    cut = _groups(_ByDigest(study), settings.granularity)
    alpha, lr = _scales(cut.grams, settings)
    descent = Descent(
        alpha, lr, settings.steps, settings.penalty, settings.momentum, settings.weight_decay
    )
    coefficients, losses = descend(cut.grams, descent)
    by_tensor = moments(cut, coefficients, study.grams)
    outcome = _outcome(settings, coefficients, losses)
    return Disentangled(settings, cut, coefficients, losses, alpha, lr, by_tensor, outcome)


def no_redundancy(study: Study) -> Disentangled:
    """delta = 0: the task vectors as they are, in the form that every measure takes."""
    return solve(study, Settings(steps=0))


def _scales(grams: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """alpha and beta of every group in the paper's units."""
    ones = np.ones(len(grams))
    paper_alpha, paper_lr = settings.uses_paper_units
    if paper_alpha:
        alpha = ones * (PAPER_ALPHA if settings.alpha is None else settings.alpha)
    else:
        fraction = settings.alpha_relative
        critical = np.array([critical_alpha(gram) for gram in grams])
        alpha = critical * (RELATIVE_ALPHA if fraction is None else fraction)
    if paper_lr:
        return alpha, ones * (settings.lr or PAPER_LR)
    mean_norm = np.sqrt(np.einsum("gii->gi", grams)).mean(1)
    return alpha, mean_norm**2 * (settings.lr_relative or RELATIVE_LR)


def _outcome(settings: Settings, coefficients: np.ndarray, losses: np.ndarray) -> str:
    if coefficients.shape[1] < 2:
        return "One expert: there is no pair to make orthogonal, so delta is 0."
    if not coefficients.any():
        return (
            "delta stayed 0: alpha is at or above alpha_crit, or the task vectors are orthogonal."
        )
    change = f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"
    if losses[-1] > losses[0]:
        return (
            f"After {settings.steps} steps {change}: it rose, because the step is too long for"
            " groups of this norm. Use a smaller lr, or lr_relative."
        )
    return f"Ended after {settings.steps} steps; {change}."


class _ByDigest:
    """A study as a cache key: two studies of the same digest hold the same numbers."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __hash__(self) -> int:
        return hash(self.study.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByDigest) and other.study.digest == self.study.digest


@lru_cache(maxsize=8)
def _groups(study: _ByDigest, granularity: Granularity) -> Groups:
    return groups(study.study, granularity)
