"""How AWD ended, in sentences that a user can read."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from awd_core.disentangle.gram_solver import Descended, Descent
from awd_core.disentangle.groups import Groups
from awd_core.disentangle.objective import cosines
from awd_core.disentangle.settings import Settings
from awd_core.disentangle.solution import Moments

# Experts are told apart below this cosine; above it delta can hardly separate them.
DUPLICATE = 0.999
# Share of a task vector's norm below which delta has swallowed the expert.
SWALLOWED_SHARE = 0.01


def outcome(
    experts: Sequence[str],
    settings: Settings,
    groups: Groups,
    descent: Descent,
    found: Descended,
    model: Moments,
) -> str:
    """How it ended, then whatever is unusual about the experts.

    Args:
        experts: Their labels.
        settings: What was asked for.
        groups: The groups.
        descent: What was done in every group.
        found: What the descent found.
        model: Moments of the whole model.
    """
    sentences = [_ending(settings, groups, descent, found)]
    sentences += _zero(experts, model.grams)
    sentences += _duplicates(experts, model.grams)
    sentences += _swallowed(experts, model)
    return " ".join(sentences)


def _ending(settings: Settings, groups: Groups, descent: Descent, found: Descended) -> str:
    if found.coefficients.shape[1] < 2:
        return "One expert: there is no pair to make orthogonal, so delta is 0."
    if (np.einsum("gii->gi", groups.grams) > 0).sum(1).max() < 2:
        return "Fewer than two task vectors differ from 0: there is no pair, so delta is 0."
    if settings.steps == 0:
        return "No step was taken: delta is 0."
    acts = groups.critical_alpha > 0
    if not acts.any():
        return "The task vectors are orthogonal already: delta stayed 0."
    held = acts & _held(groups, descent, found)
    if held.sum() == acts.sum():
        flicker = " but for one step of flicker" if found.coefficients.any() else ""
        return f"delta stayed 0{flicker}: alpha is at or above alpha_crit."
    if not found.coefficients.any():
        return "delta stayed 0: no step made the loss smaller."
    return _change(settings, found) + _held_sentence(int(held.sum()), len(held))


def _held(groups: Groups, descent: Descent, found: Descended) -> np.ndarray:
    """Where alpha >= alpha_crit keeps delta at 0, but for the 2 alpha beta of one step."""
    if descent.penalty != "l2":
        return np.zeros(len(groups.labels), dtype=bool)
    c = found.coefficients
    squares = np.einsum("gi,gij,gj->g", c, groups.grams, c, optimize=True)
    flicker = 2 * descent.alpha * descent.lr
    return (descent.alpha >= groups.critical_alpha) & (squares <= flicker**2)


def _change(settings: Settings, found: Descended) -> str:
    first, last = found.losses[0], found.losses[-1]
    change = f"the loss went from {first:.4g} to {last:.4g}"
    if last > first:
        return (
            f"After {settings.steps} steps {change}: it rose, because the step is too long for"
            " groups of this norm. Use a smaller lr, or lr_relative."
        )
    if settings.until == "steps":
        return f"Ended after {settings.steps} steps; {change}."
    unfinished = int((found.steps >= settings.steps).sum())
    if not unfinished:
        return f"Converged after {found.steps.max()} steps; {change}."
    return (
        f"{unfinished} of {len(found.steps)} groups were still improving after {settings.steps}"
        f" steps; {change}. More steps would lower it further."
    )


def _held_sentence(n_held: int, n_groups: int) -> str:
    if not n_held:
        return ""
    return (
        f" In {n_held} of {n_groups} groups alpha is at or above alpha_crit, so delta is 0 there."
    )


def _zero(experts: Sequence[str], gram: np.ndarray) -> list[str]:
    names = [name for name, square in zip(experts, np.diag(gram), strict=True) if not square]
    if not names:
        return []
    verb = "equals the base and takes" if len(names) == 1 else "equal the base and take"
    return [f"{_listed(names)} {verb} no part."]


def _duplicates(experts: Sequence[str], gram: np.ndarray) -> list[str]:
    cosine = cosines(gram)
    return [
        f"{experts[i]} and {experts[j]} are all but the same (cos {cosine[i, j]:.5f}): delta cannot"
        " tell them apart."
        for i, j in combinations(range(len(experts)), 2)
        if cosine[i, j] > DUPLICATE
    ]


def _swallowed(experts: Sequence[str], model: Moments) -> list[str]:
    before, after = np.diag(model.grams), np.diag(model.disentangled)
    gone = (before > 0) & (after < SWALLOWED_SHARE**2 * before)
    names = [name for name, is_gone in zip(experts, gone, strict=True) if is_gone]
    if not names:
        return []
    return [f"delta swallowed {_listed(names)}: less than 1% of the task vector is left."]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
