"""The Gram solver against autograd in the space of the weights, and against closed forms."""

from itertools import product

import numba
import numpy as np
import pytest

from awd_core.disentangle.gram_solver import Descended, Descent, run
from awd_core.disentangle.objective import (
    Penalty,
    critical_alphas,
    disentangled_grams,
    gradient_coefficients,
    mean_absolute_cosine,
    mean_norms,
)
from awd_core.lanes import LANES
from tests.reference.full_space import descend_by_autograd, overlap, overlap_gradient

MOTIONS = ((300, 0.0, 0.0), (40, 0.9, 1e-2))  # steps, momentum, weight decay


def random_vectors(n_groups: int, n_experts: int, n: int = 60, seed: int = 0) -> np.ndarray:
    """(groups, K, n) with a shared part and unequal norms."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n_groups, 1, n))
    own = rng.standard_normal((n_groups, n_experts, n))
    return (own + 0.5 * shared) * rng.uniform(0.3, 3, (n_groups, n_experts, 1))


def grams_of(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.swapaxes(-1, -2)


def solve(grams: np.ndarray, alpha: float = 0.1, lr: float = 0.01, **fields: object) -> Descended:
    """alpha as a fraction of alpha_crit, lr over s^2."""
    scale, critical = mean_norms(grams), critical_alphas(grams)
    settings = {"steps": 300} | fields
    return run(grams, Descent(alpha * critical, lr * scale**2, **settings))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("n_experts", "penalty", "motion"),
    list(product((2, 3, 8), ("l2", "l2_squared", "none"), MOTIONS)),
)
def test_equals_autograd_in_the_space_of_the_weights(
    n_experts: int, penalty: Penalty, motion: tuple[int, float, float]
) -> None:
    vectors = random_vectors(LANES + 3, n_experts)
    grams = grams_of(vectors)
    alpha, lr = 0.1 * critical_alphas(grams), 0.01 * mean_norms(grams) ** 2
    found = run(grams, Descent(alpha, lr, motion[0], penalty, motion[1], motion[2]))
    for group, tau in enumerate(vectors):
        theirs = descend_by_autograd(
            tau, alpha[group], lr[group], motion[0], penalty, motion[1], motion[2]
        )
        ours = found.coefficients[group] @ tau
        assert np.linalg.norm(ours - theirs) <= 1e-12 * np.linalg.norm(theirs)


def test_gradient_equals_finite_differences() -> None:
    tau = random_vectors(1, 4, n=12)[0]
    gradient = -gradient_coefficients(grams_of(tau)) @ tau
    np.testing.assert_allclose(gradient, overlap_gradient(tau), rtol=1e-13)
    step = 1e-6
    for axis in range(tau.shape[1]):
        shift = np.zeros(tau.shape[1])
        shift[axis] = step
        slope = (overlap(tau - shift) - overlap(tau + shift)) / (2 * step)
        assert slope == pytest.approx(gradient[axis], rel=1e-6, abs=1e-9)


def test_batch_and_threads_never_change_a_group() -> None:
    grams = grams_of(random_vectors(1000, 8))
    together = solve(grams).coefficients
    alone = [solve(grams[group][None]).coefficients[0] for group in (0, 7, 500, 999)]
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        serial = solve(grams)
    finally:
        numba.set_num_threads(before)
    assert np.array_equal(together[[0, 7, 500, 999]], alone)
    assert np.array_equal(together, serial.coefficients)
    assert np.array_equal(serial.losses, solve(grams).losses)
    assert np.array_equal(solve(grams[::-1]).coefficients[::-1], together)


@pytest.mark.parametrize("until", ["steps", "converged"])
@pytest.mark.parametrize("factor", [1e-20, 1e-3, 8.0, 1e15])
def test_scaled_task_vectors_have_the_same_coefficients(until: str, factor: float) -> None:
    grams = grams_of(random_vectors(9, 5))
    plain = solve(grams, until=until)
    scaled = solve(grams * factor**2, until=until)
    np.testing.assert_allclose(scaled.losses, plain.losses, rtol=1e-9)
    np.testing.assert_allclose(scaled.coefficients, plain.coefficients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [0.125, 2.0, 1024.0])
def test_powers_of_two_change_no_bit_of_the_scaled_problem(factor: float) -> None:
    grams = grams_of(random_vectors(9, 5))
    assert np.array_equal(solve(grams).coefficients, solve(grams * factor**2).coefficients)


@pytest.mark.parametrize(("n_experts", "cosine"), [(8, 0.1), (4, 0.3), (2, 0.5)])
def test_equal_cosines_end_orthogonal_at_the_closed_form(n_experts: int, cosine: float) -> None:
    gram = np.full((n_experts, n_experts), cosine)
    np.fill_diagonal(gram, 1.0)
    share = 1 - np.sqrt((1 - cosine) / (1 + (n_experts - 1) * cosine))
    found = solve(gram[None], alpha=0.0, steps=3000, until="converged")
    np.testing.assert_allclose(found.coefficients, share / n_experts, rtol=1e-5)
    assert mean_absolute_cosine(disentangled_grams(gram, found.coefficients[0])) < 1e-6


def test_closed_form_of_alpha_crit() -> None:
    for n_experts, cosine, norm in ((8, 0.1, 2.5), (3, 0.7, 40.0)):
        gram = np.full((n_experts, n_experts), cosine * norm**2)
        np.fill_diagonal(gram, norm**2)
        expected = 2 * (1 - cosine) / norm * np.sqrt((1 + (n_experts - 1) * cosine) / n_experts)
        assert critical_alphas(gram) == pytest.approx(expected, rel=1e-12)


def nearly_equal_cosines(n_groups: int, n_experts: int) -> np.ndarray:
    """Grams near equal norms and cosines from .1 to .8: there the gradient is largest at 0."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((n_groups, n_experts, 4000)) / np.sqrt(4000)
    shared = np.zeros((n_groups, 1, 4000))
    shared[:, 0, 0] = np.linspace(0.3, 2, n_groups)
    return grams_of((noise + shared) * np.geomspace(0.1, 100, n_groups)[:, None, None])


def test_alpha_above_alpha_crit_keeps_delta_within_two_steps() -> None:
    grams = nearly_equal_cosines(20, 6)
    alpha, lr = 1.1 * critical_alphas(grams), 0.01 * mean_norms(grams) ** 2
    for steps in (1, 2, 3, 50, 301):
        c = run(grams, Descent(alpha, lr, steps)).coefficients
        norms = np.sqrt(np.einsum("gi,gij,gj->g", c, grams, c))
        assert (norms <= 2 * alpha * lr).all()
    assert not run(grams, Descent(alpha, lr, 500, until="converged")).coefficients.any()


def test_permuted_experts_have_permuted_coefficients() -> None:
    grams = grams_of(random_vectors(9, 6))
    order = np.array([3, 0, 5, 1, 4, 2])
    plain = solve(grams).coefficients
    permuted = solve(grams[:, order][:, :, order]).coefficients
    np.testing.assert_allclose(permuted, plain[:, order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("until", ["steps", "converged"])
def test_orthogonal_task_vectors_have_no_redundancy(until: str) -> None:
    grams = np.stack([np.diag([1.0, 4.0, 9.0]), 1e-8 * np.eye(3)])
    assert not solve(grams, alpha=0.0, until=until).coefficients.any()


def test_weighted_task_arithmetic_equals_explicit_subtraction() -> None:
    tau = random_vectors(1, 5)[0]
    c = solve(grams_of(tau)[None]).coefficients[0]
    coefficients = np.array([0.3, 0.5, -0.2, 1.0, 0.0])
    explicit = coefficients @ (tau - c @ tau)
    by_weights = (coefficients - coefficients.sum() * c) @ tau
    np.testing.assert_allclose(by_weights, explicit, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.04])
def test_radius_is_a_hard_bound_that_is_reached(radius: float) -> None:
    grams = grams_of(random_vectors(20, 6))
    found = solve(grams, lr=0.05, steps=2000, penalty="none", until="converged", radius=radius)
    c = found.coefficients
    norms = np.sqrt(np.einsum("gi,gij,gj->g", c, grams, c)) / mean_norms(grams)
    assert (norms <= radius * (1 + 1e-12)).all()
    assert (norms >= radius * (1 - 1e-3)).all()
    free = solve(grams, lr=0.05, steps=2000, penalty="none", until="converged")
    assert found.losses[-1] > free.losses[-1]


def test_projection_is_the_nearest_point_of_the_ball() -> None:
    """One long step against the explicit projection of delta."""
    tau = random_vectors(1, 4)[0]
    gram = grams_of(tau)[None]
    length = 0.3 * mean_norms(gram)[0]
    step = gradient_coefficients(gram[0]) @ tau * 1e3
    found = run(gram, Descent(np.zeros(1), np.full(1, 1e3), 1, "none", radius=0.3))
    # `radius` holds at every point where the loss is read, so also after the last step.
    np.testing.assert_allclose(
        found.coefficients[0] @ tau, step * length / np.linalg.norm(step), rtol=1e-12
    )


def test_converged_descent_ends_at_a_stationary_point_and_says_when() -> None:
    grams = grams_of(random_vectors(50, 8))
    found = solve(grams, lr=0.05, steps=5000, until="converged")
    assert (found.steps < 5000).all()
    assert len(found.losses) == found.steps.max() + 1
    assert (np.diff(found.losses) <= 0).all()
    slow = solve(grams, lr=1e-4, steps=100_000)
    assert found.losses[-1] <= slow.losses[-1] * 1.002


def test_converged_descent_survives_a_step_that_diverges() -> None:
    grams = grams_of(random_vectors(50, 8))
    assert solve(grams, lr=30.0).losses[-1] > solve(grams, lr=30.0).losses[0]
    found = solve(grams, lr=30.0, steps=5000, until="converged")
    good = solve(grams, lr=0.05, steps=5000, until="converged")
    assert found.losses[-1] < 1.1 * good.losses[-1]


def test_zero_vectors_and_groups_without_a_pair_take_no_part() -> None:
    vectors = random_vectors(3, 4)
    vectors[0, 2] = 0
    vectors[1, :3] = 0
    vectors[2] = 0
    found = solve(grams_of(vectors))
    three = solve(grams_of(vectors[:1, [0, 1, 3]]))
    # s counts zero vectors too, so the step is another; what is pulled where is the same.
    assert found.coefficients[0, 2] == 0
    assert not found.coefficients[1:].any()
    assert np.isfinite(found.losses).all()
    assert (
        np.sign(found.coefficients[0, [0, 1, 3]]).tolist()
        == np.sign(three.coefficients[0]).tolist()
    )


def test_vectors_on_one_line_have_no_redundancy() -> None:
    """Single numbers, as a logit scale: every |cos| is 1, whatever is subtracted."""
    numbers = random_vectors(50, 5, n=1)
    for until in ("steps", "converged"):
        found = solve(grams_of(numbers), until=until)
        assert not found.coefficients.any()
        assert found.losses[-1] == pytest.approx(1.0, rel=1e-12)
    shared = random_vectors(1, 1, n=30)[0] * np.array([[1.0], [-2.0], [1e-3]])
    assert not solve(grams_of(shared)[None]).coefficients.any()
