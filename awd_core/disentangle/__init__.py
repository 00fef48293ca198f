"""Adaptive Weight Disentanglement: one small redundant vector makes task vectors orthogonal."""

from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from awd_core.disentangle.alpha_path import AlphaPath, alpha_path
from awd_core.disentangle.dense_solver import DenseSolution, solve_dense
from awd_core.disentangle.descent import as_descent
from awd_core.disentangle.gram_solver import run
from awd_core.disentangle.groups import Groups, granularities, groups
from awd_core.disentangle.objective import (
    cosines,
    critical_alpha,
    critical_alphas,
    disentangled_grams,
    mean_absolute_cosine,
)
from awd_core.disentangle.outcome import outcome
from awd_core.disentangle.presets import PRESETS, Preset
from awd_core.disentangle.settings import GRANULARITIES, Granularity, Settings
from awd_core.disentangle.solution import Disentangled, Moments, match_norm, moments
from awd_core.study import Study
from awd_core.validation import as_recipe_error

__all__ = [
    "GRANULARITIES",
    "PRESETS",
    "AlphaPath",
    "DenseSolution",
    "Disentangled",
    "Granularity",
    "Moments",
    "Preset",
    "Settings",
    "alpha_path",
    "cosines",
    "critical_alpha",
    "critical_alphas",
    "disentangle",
    "disentangled_grams",
    "granularities",
    "match_norm",
    "mean_absolute_cosine",
    "no_redundancy",
    "solve",
    "solve_dense",
]


def disentangle(study: Study, granularity: Granularity = "model", **settings: Any) -> Disentangled:
    """Find the redundant vector of every group by gradient descent in the Gram domain.

    delta <- delta - beta grad( 1/(K(K-1)) sum_{i != j} |cos(tau_i - delta, tau_j - delta)|
    + alpha ||delta|| ), from delta = 0 (arXiv 2411.18729, Eq. 9-11). Equal to the same descent in
    the space of the weights to rounding, without the weights.

    Args:
        study: The study.
        granularity: `model`, `block`, `tensor`, `row` or `spectral`.
        **settings: The other fields of `Settings`: alpha, alpha_relative, lr, lr_relative, steps,
            penalty, momentum, weight_decay, until, radius, row_average.

    Returns:
        Coefficients, trace, and what follows from them.

    Raises:
        RecipeError: A setting is unknown or out of range.
        StudyError: Granularity `row` or `spectral` on a study without that level.

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
    descent = as_descent(cut, settings)
    found = run(cut.grams, descent)
    by_tensor = moments(cut, found.coefficients, study.grams)
    sentence = outcome(study.experts, settings, cut, descent, found, by_tensor.total())
    return Disentangled(
        settings,
        cut,
        found.coefficients,
        found.losses,
        descent.alpha,
        descent.lr,
        by_tensor,
        sentence,
        found.steps,
    )


def no_redundancy(study: Study) -> Disentangled:
    """delta = 0: the task vectors as they are, in the form that every measure takes."""
    return solve(study, Settings(steps=0))


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
