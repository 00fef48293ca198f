"""AWD on task vectors that depend on one another, as rows shorter than K always do."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from awd_core.disentangle.gram_solver import Descent, run
from awd_core.disentangle.objective import critical_alphas, mean_norms


@st.composite
def dependent_vectors(draw: st.DrawFn) -> np.ndarray:
    """(groups, K, n) of rank below K, with norms over four decades."""
    n_experts = draw(st.integers(2, 10))
    n = draw(st.integers(1, n_experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = rng.standard_normal((5, n_experts, n)) * 10 ** rng.uniform(-3, 1, (5, n_experts, 1))
    if draw(st.booleans()):  # of any length, but one of them the sum of two others
        vectors = rng.standard_normal((5, n_experts, 20))
        vectors[:, -1] = vectors[:, 0] + vectors[:, (n_experts - 1) // 2]
    return vectors


@given(dependent_vectors(), st.floats(0, 2), st.floats(1e-4, 0.05), st.sampled_from([0.0, 0.9]))
def test_coefficients_stay_finite(
    tau: np.ndarray, alpha: float, lr: float, momentum: float
) -> None:
    grams = tau @ tau.swapaxes(1, 2)
    scale = mean_norms(grams)
    descent = Descent(alpha * critical_alphas(grams), lr * scale**2, 300, momentum=momentum)
    found = run(grams, descent)
    assert np.isfinite(found.coefficients).all()
    assert np.isfinite(found.losses).all()


@given(dependent_vectors(), st.floats(0, 1), st.floats(1e-4, 0.05))
def test_a_converged_descent_never_ends_above_its_start(
    tau: np.ndarray, alpha: float, lr: float
) -> None:
    grams = tau @ tau.swapaxes(1, 2)
    scale = mean_norms(grams)
    descent = Descent(alpha * critical_alphas(grams), lr * scale**2, 200, until="converged")
    losses = run(grams, descent).losses
    assert losses[-1] <= losses[0] * (1 + 1e-12)
