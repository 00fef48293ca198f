"""What holds for AWD on any Gram, however ill it is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from awd_core.disentangle.gram_solver import Descent, Until, run
from awd_core.disentangle.objective import critical_alphas, mean_norms


@st.composite
def any_grams(draw: st.DrawFn) -> np.ndarray:
    """K 2..12, norms over six decades, cosines up to 1 - 1e-9."""
    n_experts = draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1.0, 0.1, 1e-3, 3e-5]))
    own = rng.standard_normal((n_experts, 20))
    vectors = rng.standard_normal(20) * draw(st.sampled_from([0.0, 1.0])) + spread * own
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    signs = rng.choice([-1.0, 1.0], (n_experts, 1)) if draw(st.booleans()) else 1.0
    norms = 10 ** rng.uniform(-3, 3, (n_experts, 1)) if draw(st.booleans()) else 1.0
    vectors = vectors * signs * norms * 10.0 ** draw(st.integers(-6, 6))
    return (vectors @ vectors.T)[None]


@given(any_grams(), st.sampled_from(["steps", "converged"]), st.floats(0, 2), st.floats(1e-4, 0.1))
def test_finite_and_bounded(gram: np.ndarray, until: Until, alpha: float, lr: float) -> None:
    scale = mean_norms(gram)
    descent = Descent(alpha * critical_alphas(gram), lr * scale**2, 200, until=until)
    found = run(gram, descent)
    assert np.isfinite(found.coefficients).all()
    assert np.isfinite(found.losses).all()
    assert found.losses.min() >= 0
    if until == "converged":
        # Rounding of a cosine near 1, once at the start and once at the end.
        assert found.losses[-1] <= found.losses[0] * (1 + 1e-12)
        assert found.losses[-1] <= 1 + 1e-12


@given(any_grams(), st.floats(0, 1), st.floats(1e-3, 1))
def test_radius_always_holds(gram: np.ndarray, radius: float, lr: float) -> None:
    scale = mean_norms(gram)
    descent = Descent(np.zeros(1), lr * scale**2, 100, "none", until="converged", radius=radius)
    c = run(gram, descent).coefficients[0]
    norm = np.sqrt(max(0.0, c @ gram[0] @ c))
    # c^T G c cancels where the vectors are nearly parallel; the terms bound its rounding.
    rounding = 1e-15 * np.abs(c) @ np.abs(gram[0]) @ np.abs(c)
    assert norm**2 <= (radius * scale[0]) ** 2 * (1 + 1e-9) + 100 * rounding
