"""AWD in the Gram domain equals AWD in the space of the weights, from files to delta."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from tests.helpers import BLOCKS, SHAPES, Family, base_state, expert_states, redundant_vectors
from tests.reference import full_space

GRANULARITIES = ("model", "block", "tensor", "row")

# A group of one number (a scalar, a row of one column) has cosines of exactly 1 and a gradient of
# exactly 0: both descents would then follow nothing but their own rounding.
COMPARED = [name for name in SHAPES if name not in ("logit_scale", "column.weight", "empty.weight")]

# |cos| has a kink at 0. A descent that steps back and forth over it takes another branch when it
# differs in the last bit, so differences grow. With plain descent they do not get far: 1e-15 of
# delta after the paper's 300 steps. Momentum .9 goes ten times as far in a step, and two runs of
# the reference itself, on vectors that differ by 1e-16, are apart by 2e-15 after 60 steps, 2e-14
# after 100 and 2e-7 after 300. So momentum is compared over 100 steps.
PLAIN, HEAVY = (300, 0.0, 0.0), (100, 0.9, 1e-4)  # steps, momentum, weight decay

CASES = [(k, g, "l2", PLAIN) for k in (2, 3, 8) for g in GRANULARITIES] + [
    (5, g, penalty, motion)
    for g in GRANULARITIES
    for penalty in ("l2", "l2_squared", "none")
    for motion in (PLAIN, HEAVY)
]

Studied = Callable[[int], tuple[Family, awd.Study]]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    @cache
    def study(n_experts: int) -> tuple[Family, awd.Study]:
        base = {name: tensor for name, tensor in base_state().items() if name in COMPARED}
        root = tmp_path_factory.mktemp(f"experts-{n_experts}")
        family = Family(root, base, expert_states(base, n_experts))
        return family, family.study(out=root / "study")

    return study


@pytest.mark.parametrize(("n_experts", "granularity", "penalty", "motion"), CASES)
def test_gram_descent_equals_full_space_descent(
    studied: Studied,
    n_experts: int,
    granularity: Any,
    penalty: str,
    motion: tuple[int, float, float],
) -> None:
    family, study = studied(n_experts)
    settings = dict(
        zip(("steps", "momentum", "weight_decay"), motion, strict=True), penalty=penalty
    )
    solved = awd.disentangle(study, granularity, **settings)
    ours = redundant_vectors(family, study, solved)
    theirs, losses = redundant_in_full_space(family, study, granularity, settings)
    assert np.linalg.norm(theirs) > 0.02 * np.linalg.norm(family.flat_task_vectors(), axis=1).mean()
    assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs)
    np.testing.assert_allclose(solved.losses, losses, rtol=1e-10)


def redundant_in_full_space(
    family: Family, study: awd.Study, granularity: str, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """delta over the whole model, and L averaged over groups, by explicit descent.

    The paper's alpha .1 and step .01 for the whole model; for smaller groups our defaults, a tenth
    of alpha_crit (of alpha_crit / s where the norm is squared) and .01 s^2.
    """
    by_name, losses = {}, []
    shapes = {tensor.name: tensor.shape for tensor in study.tensors}
    for names, tau in full_space.cut(family.task_vectors(), granularity, BLOCKS):
        alpha, lr = 0.1, 0.01
        if granularity != "model":
            critical, scale = full_space.scales(tau)
            unit = scale if settings["penalty"] == "l2_squared" else 1.0
            alpha, lr = 0.1 * critical / unit, 0.01 * scale**2
        trace = full_space.descend(tau, alpha, lr, **settings)
        by_name |= full_space.uncut(names, trace.delta, shapes)
        losses.append(trace.losses.reshape(len(trace.losses), -1))
    delta = np.concatenate([by_name[tensor.name].ravel() for tensor in study.tensors])
    return delta, np.concatenate(losses, axis=1).mean(1)


@pytest.mark.parametrize(("columns", "steps"), [(2, 10), (3, 60), (4, 100)])
@pytest.mark.parametrize("n_experts", [5, 8])
def test_rows_shorter_than_the_number_of_experts(
    tmp_path: Path, n_experts: int, columns: int, steps: int
) -> None:
    # Their task vectors depend on one another, so many c give the same delta. Short rows soon come
    # close to 0, where the smallest difference grows: hence the number of steps.
    base = {"a.weight": torch.zeros(40, columns)}
    family = Family(tmp_path, base, expert_states(base, n_experts))
    study = family.study(out=tmp_path / "study")
    settings: dict[str, Any] = {"steps": steps, "penalty": "l2"}
    solved = awd.disentangle(study, "row", **settings)
    ours = redundant_vectors(family, study, solved)
    theirs, _ = redundant_in_full_space(family, study, "row", settings)
    assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs)
    assert np.abs(solved.span_coefficients).max() < 10


@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
def test_an_expert_that_is_the_mean_of_two_others(tmp_path: Path, granularity: Any) -> None:
    base = {"a.weight": torch.zeros(6, 20, dtype=torch.float64)}
    experts = expert_states(base, 3)
    experts.append({"a.weight": (experts[0]["a.weight"] + experts[1]["a.weight"]) / 2})
    family = Family(tmp_path, base, experts)
    study = family.study(out=tmp_path / "study")
    settings: dict[str, Any] = {"steps": 200, "penalty": "l2"}
    ours = redundant_vectors(family, study, awd.disentangle(study, granularity, **settings))
    theirs, _ = redundant_in_full_space(family, study, granularity, settings)
    assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs)
