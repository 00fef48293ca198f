"""The reference descent against autograd, finite differences and the cosines themselves."""

import numpy as np
import pytest

from tests.reference import full_space
from tests.reference.merging import cosines


def vectors(n_experts: int, n: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signs = np.where(np.arange(n_experts) % 3 == 2, -1, 1)[:, None]
    return signs * rng.normal(size=n) * 0.5 + rng.normal(size=(n_experts, n))


def test_overlap_is_the_mean_of_absolute_cosines() -> None:
    tau = vectors(4)
    pairs = np.abs(cosines(tau))[np.triu_indices(4, 1)]
    assert full_space.overlap(tau) == pytest.approx(pairs.mean(), rel=1e-14)


@pytest.mark.parametrize("n_experts", [2, 3, 5, 8])
def test_gradient_is_the_slope_of_the_overlap(n_experts: int) -> None:
    tau, step = vectors(n_experts), 1e-6
    slopes = [
        (full_space.overlap(tau - step * axis) - full_space.overlap(tau + step * axis)) / (2 * step)
        for axis in np.eye(tau.shape[1])
    ]
    np.testing.assert_allclose(full_space.overlap_gradient(tau), slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalty", ["l2", "l2_squared", "none"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 1e-2)])
@pytest.mark.parametrize("n_experts", [2, 5])
def test_descent_by_formula_equals_descent_by_autograd(
    n_experts: int, penalty: str, momentum: float, weight_decay: float
) -> None:
    tau = vectors(n_experts, seed=n_experts)
    settings = (0.01, 0.05, 100, penalty, momentum, weight_decay)
    delta = full_space.descend(tau, *settings).delta
    other = full_space.descend_by_autograd(tau, *settings)
    assert np.linalg.norm(delta) > 1e-3
    assert np.linalg.norm(delta - other) <= 1e-10 * np.linalg.norm(delta)


def test_groups_side_by_side_do_not_mix() -> None:
    one, two = vectors(3, seed=1), vectors(3, seed=2)
    both = full_space.descend(np.stack([one, two]), np.array([0.1, 0.2]), 0.1, 50).delta
    np.testing.assert_allclose(both[0], full_space.descend(one, 0.1, 0.1, 50).delta, rtol=1e-12)
    np.testing.assert_allclose(both[1], full_space.descend(two, 0.2, 0.1, 50).delta, rtol=1e-12)
