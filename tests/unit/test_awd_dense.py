"""The dense solver against torch's own optimizers on an explicit delta, and against the Gram."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import awd_core as awd
from awd_core.disentangle import solve_dense
from awd_core.errors import RecipeError
from awd_core.progress import Progress
from tests.helpers import BLOCKS, Family, cancel_after, family
from tests.reference import full_space

STEPS = 60


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(tmp_path_factory.mktemp("dense"), n_experts=4)


def solved(experts: Family, **fields: Any) -> dict[str, np.ndarray]:
    tensors = [tensor for tensor in experts.base.stored.values() if tensor.is_float]
    settings = awd.Settings(steps=STEPS, **fields)
    found = solve_dense(tensors, experts.experts, settings, device="cpu")
    return {name: delta.double().numpy() for name, delta in found.redundant.items()}


def brute_force(tau: np.ndarray, adam: bool, penalty: str, alpha: float, lr: float) -> np.ndarray:
    """delta of one group by torch.optim and autograd in float64, (K, n) -> (n,)."""
    vectors = torch.from_numpy(tau)
    delta = torch.zeros(tau.shape[1], dtype=torch.float64, requires_grad=True)
    kind = torch.optim.Adam if adam else torch.optim.SGD
    optimizer = kind([delta], lr=lr)
    i, j = torch.tril_indices(len(tau), len(tau), offset=-1)
    for _ in range(STEPS):
        v = vectors - delta
        loss = torch.cosine_similarity(v[i], v[j], dim=1, eps=1e-300).abs().mean()
        size = {
            "l1": lambda: delta.abs().sum(),
            "l2": lambda: torch.linalg.vector_norm(delta),
            "none": lambda: delta.sum() * 0,
        }[penalty]
        loss = loss + alpha * size()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return delta.detach().numpy()


@pytest.mark.parametrize("granularity", ["model", "block", "tensor", "row"])
@pytest.mark.parametrize(
    ("adam", "penalty", "alpha", "lr"),
    [
        (True, "l2", 0.05, 1e-3),
        (True, "none", 0.0, 1e-3),
        (False, "l1", 0.002, 0.02),
        (True, "l1", 0.002, 1e-3),
    ],
)
def test_equals_brute_force(
    experts: Family, granularity: Any, adam: bool, penalty: str, alpha: float, lr: float
) -> None:
    optimizer = "adam" if adam else "gradient_descent"
    ours = solved(
        experts, granularity=granularity, optimizer=optimizer, penalty=penalty, alpha=alpha, lr=lr
    )
    vectors = {name: tau for name, tau in experts.task_vectors().items() if tau.size}
    apart, length = 0.0, 0.0
    for names, tau in full_space.cut(vectors, granularity, BLOCKS):
        if tau.shape[-1] == 1:
            continue  # one number has no direction: both follow nothing but rounding
        groups = tau[None] if tau.ndim == 2 else tau
        theirs = np.stack([brute_force(one, adam, penalty, alpha, lr) for one in groups])
        mine = np.concatenate([ours[name].reshape(len(groups), -1) for name in names], axis=1)
        apart += float(np.square(mine - theirs).sum())
        length += float(np.square(theirs).sum())
    # float32 against float64; |delta| flickers around 0 by one step where L1 holds an entry down.
    assert np.sqrt(apart / length) < (1e-4 if penalty != "l1" else 2e-2)


def test_plain_descent_equals_the_gram_solver(experts: Family) -> None:
    study = experts.study()
    for granularity in ("model", "block", "tensor", "row"):
        fields: dict[str, Any] = {
            "granularity": granularity,
            "alpha_relative": 0.2,
            "lr_relative": 0.01,
        }
        dense = solved(experts, **fields)
        gram = awd.disentangle(study, steps=STEPS, **fields)
        total = sum(np.square(delta).sum() for delta in dense.values())
        assert total == pytest.approx(gram.redundant_norm**2, rel=1e-5)


def test_relative_alpha_of_l1_holds_delta_at_zero_from_one_on(experts: Family) -> None:
    fields: dict[str, Any] = {"granularity": "tensor", "penalty": "l1", "lr_relative": 1e-3}
    free = solved(experts, alpha_relative=0.0, **fields)
    held = solved(experts, alpha_relative=1.5, **fields)
    name = "encoder.layer.1.output.dense.weight"
    assert np.abs(held[name]).max() < 0.1 * np.abs(free[name]).max()


def test_single_numbers_stay_as_they_are(experts: Family) -> None:
    for fields in ({"optimizer": "adam"}, {"penalty": "l1"}):
        ours = solved(experts, granularity="row", **fields)
        assert not ours["logit_scale"].any()
        assert not ours["column.weight"].any()


def test_merge_subtracts_the_dense_delta(experts: Family) -> None:
    settings = {"granularity": "tensor", "optimizer": "adam", "steps": STEPS}
    merged = experts.state(disentangle=settings, coefficient=0.3)
    ours = solved(experts, granularity="tensor", optimizer="adam")
    for name, tau in experts.task_vectors().items():
        if tau.size:
            explicit = experts.base_state[name].double().numpy() + 0.3 * (tau - ours[name]).sum(0)
            np.testing.assert_allclose(merged[name].double().numpy(), explicit, atol=1e-6)


def test_too_little_memory_is_refused_first(experts: Family) -> None:
    tensors = [tensor for tensor in experts.base.stored.values() if tensor.is_float]
    settings = awd.Settings(optimizer="adam")
    with pytest.raises(awd.AwdError, match="does not fit into memory"):
        solve_dense(tensors, experts.experts, settings, device="cpu", memory=1000)


def test_progress_and_cancel(experts: Family) -> None:
    tensors = [tensor for tensor in experts.base.stored.values() if tensor.is_float]
    settings = awd.Settings(optimizer="adam", steps=5, granularity="tensor")
    seen: list[Progress] = []
    solve_dense(tensors, experts.experts, settings, device="cpu", progress=seen.append)
    assert seen[-1].fraction == 1.0
    with pytest.raises(awd.Cancelled):
        solve_dense(tensors, experts.experts, settings, device="cpu", cancel=cancel_after(3))


def test_a_study_alone_says_that_it_is_not_enough(experts: Family, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave the span"):
        awd.disentangle(experts.study(out=tmp_path / "study"), optimizer="adam")


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "adam", "momentum": 0.9},
        {"optimizer": "adam", "until": "converged"},
        {"penalty": "l1", "radius": 0.1},
    ],
)
def test_contradictions_are_refused(experts: Family, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        experts.recipe(disentangle=fields)
